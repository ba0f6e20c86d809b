// Where in the sources an instruction comes from: nvcc's .loc and .file directives (-lineinfo).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base.h"

namespace emu {

class SourceLines {
 public:
  explicit SourceLines(std::string const& ptx);
  // Of a line of the PTX: "csrc/a.cuh:12 < csrc/b.cuh:34", the innermost place first, then where it was inlined. Empty
  // without information.
  std::string of(u32 line) const;

 private:
  struct Place {
    u32 file = 0, line = 0, column = 0;
    bool operator==(Place const&) const = default;
  };
  struct Directive {
    u32 ptx_line;
    Place place, inlined_at;  // the latter's file is 0 where nothing was inlined
  };
  std::string text(Place const& place) const;

  std::vector<Directive> directives_;
  std::map<u32, std::string> files_;
};

}  // namespace emu
