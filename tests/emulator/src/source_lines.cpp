#include "source_lines.h"

#include <algorithm>
#include <cstdio>

#include "text.h"

namespace emu {

SourceLines::SourceLines(std::string const& ptx) {
  u32 number = 0;
  for (size_t i = 0; i < ptx.size();) {
    size_t const end = std::min(ptx.find('\n', i), ptx.size());
    std::string const line = trimmed(std::string_view(ptx).substr(i, end - i));
    ++number;
    i = end + 1;
    Directive d{number, {}, {}};
    u32 file;
    int name = 0;
    if (sscanf(line.c_str(), ".loc %u %u %u", &d.place.file, &d.place.line, &d.place.column) == 3) {
      Place& p = d.inlined_at;
      if (size_t const at = line.find("inlined_at"); at != std::string::npos)
        sscanf(line.c_str() + at, "inlined_at %u %u %u", &p.file, &p.line, &p.column);
      directives_.push_back(d);
    } else if (sscanf(line.c_str(), ".file %u \"%n", &file, &name) == 1 && name > 0) {
      files_[file] = line.substr(size_t(name), line.find('"', size_t(name)) - size_t(name));
    }
  }
}

std::string SourceLines::text(Place const& place) const {
  auto const found = files_.find(place.file);
  std::string name = found == files_.end() ? "?" : found->second;
  size_t const root = name.rfind("/csrc/");
  name = name.substr(root != std::string::npos ? root + 1 : name.rfind('/') + 1);
  return name + ":" + std::to_string(place.line);
}

std::string SourceLines::of(u32 line) const {
  constexpr int kDeepest = 12;
  auto const later = [](u32 l, Directive const& d) { return l < d.ptx_line; };
  auto at = std::upper_bound(directives_.begin(), directives_.end(), line, later);
  if (at == directives_.begin()) return "";
  --at;
  std::string chain = text(at->place);
  for (int depth = 0; depth < kDeepest && at->inlined_at.file != 0; ++depth) {
    Place const outer = at->inlined_at;
    chain += " < " + text(outer);
    // The caller's own directive stands before those of what was inlined into it.
    while (at != directives_.begin() && !(at->place == outer)) --at;
    if (!(at->place == outer)) break;
  }
  return chain;
}

}  // namespace emu
