// A module's text: its variables, and the kernels with their parameters and directives.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "memory.h"
#include "parser.h"
#include "source_lines.h"

namespace emu {
namespace {

// Without comments and line information; every line keeps its number.
std::string cleaned(std::string const& ptx) {
  std::string out;
  for (size_t i = 0; i < ptx.size();) {
    size_t const end = std::min(ptx.find('\n', i), ptx.size());
    std::string const line = ptx.substr(i, end - i);
    std::string const text = trimmed(line.substr(0, line.find("//")));
    bool const debug = text.starts_with(".loc ") || text.starts_with(".loc\t") || text.starts_with(".file");
    out += (debug ? "" : text) + '\n';
    i = end + 1;
  }
  return out;
}

// The product of up to three numbers behind `name`, 0 without it.
u32 directive(std::string const& text, char const* name, u32* dimensions = nullptr) {
  size_t const place = text.find(name);
  if (place == std::string::npos) return 0;
  u32 d[3] = {1, 1, 1};
  sscanf(text.c_str() + place + strlen(name), " %u , %u , %u", &d[0], &d[1], &d[2]);
  if (dimensions != nullptr) std::copy(d, d + 3, dimensions);
  return d[0] * d[1] * d[2];
}

// "{1, 2, 0f3F800000}" or "5" into memory; false where it holds anything but numbers.
bool initialise(u8* to, size_t bytes, u32 element_bytes, std::string value) {
  value = trimmed(value);
  if (value.starts_with("{")) value = value.substr(1, value.rfind('}') - 1);
  size_t offset = 0;
  for (std::string const& word : split(value, ',')) {
    if (!starts_with_digit(word) || offset + element_bytes > bytes) return false;
    u64 const number = parse_number(word);
    std::memcpy(to + offset, &number, std::min<u32>(element_bytes, 8));
    offset += element_bytes;
  }
  return true;
}

class ModuleParser {
 public:
  ModuleParser(std::string const& ptx, std::map<std::string, u64>& variables)
      : source_(cleaned(ptx)), variables_(variables), lines_(new SourceLines(ptx)) {
    if (size_t const target = source_.find(".target sm_"); target != std::string::npos)
      arch_ = atoi(source_.c_str() + target + strlen(".target sm_"));
  }

  std::map<std::string, Kernel*> parse() {
    while ((place_ = source_.find_first_not_of(" \t\n", place_)) != std::string::npos) {
      std::string const head = source_.substr(place_, source_.find_first_of(";{\n(", place_) - place_);
      if (head.find(".section") != std::string::npos) break;  // debug information until the end
      if (head.find(".entry") != std::string::npos)
        kernel(head);
      else if (head.find(".func") != std::string::npos)
        skip_function();
      else if (head.find(".shared") != std::string::npos)
        shared_variable();
      else if (head.find(".global") != std::string::npos || head.find(".const") != std::string::npos)
        variable();
      else
        place_ = std::min(source_.find('\n', place_), source_.size());
    }
    return kernels_;
  }

 private:
  std::string up_to_semicolon() {
    size_t const end = source_.find(';', place_);
    std::string const text = source_.substr(place_, end - place_);
    place_ = end + 1;
    return text;
  }

  void variable() {
    std::string const text = up_to_semicolon();
    size_t const equals = text.find('=');
    Declaration const d = parse_declaration(text.substr(0, equals));
    size_t const bytes = d.element_bytes * std::max<u64>(1, d.count);
    auto* const memory = static_cast<u8*>(aligned_alloc(256, bytes / 256 * 256 + 256));  // for the process's life
    memset(memory, 0, bytes);
    // With an initialiser that is not understood, the variable has an address but may not be accessed.
    if (equals == std::string::npos || initialise(memory, bytes, d.element_bytes, text.substr(equals + 1)))
      allocations().add(memory, bytes);
    symbols_.global[d.name] = variables_[d.name] = reinterpret_cast<u64>(memory);
  }

  void shared_variable() {
    std::string const text = up_to_semicolon();
    Declaration const d = parse_declaration(text);
    if (text.find(".extern") == std::string::npos) fault("shared variable outside a kernel: %s", text.c_str());
    symbols_.dynamic_shared[d.name] = true;
  }

  // Functions that were not inlined cannot be called, and `call` says so.
  void skip_function() {
    size_t i = source_.find_first_of("{;", place_);
    for (int depth = 0; source_[i] != ';' || depth > 0; ++i) {
      if (source_[i] == '{') ++depth;
      if (source_[i] == '}' && --depth == 0) break;
    }
    place_ = i + 1;
  }

  void kernel(std::string const& head) {
    auto* const kernel = new Kernel;  // for the process's life
    kernel->name = trimmed(head.substr(head.find(".entry") + strlen(".entry")));
    kernel->arch = arch_;
    size_t const open = source_.find('(', place_), close = source_.find(')', open);
    for (std::string const& text : split(std::string_view(source_).substr(open + 1, close - open - 1), ',')) {
      Declaration const d = parse_declaration(text);
      u32 const align = d.align ? d.align : d.element_bytes;
      u32 const offset = (kernel->parameter_bytes + align - 1) / align * align;
      kernel->parameters.push_back({d.name, u32(d.element_bytes * d.count), offset});
      kernel->parameter_bytes = offset + u32(d.element_bytes * d.count);
    }
    size_t const body = source_.find('{', close);
    std::string const directives = source_.substr(close + 1, body - close - 1);
    kernel->max_threads = directive(directives, ".maxntid");
    kernel->required_threads = directive(directives, ".reqntid");
    kernel->min_ctas = directive(directives, ".minnctapersm");
    directive(directives, ".reqnctapercluster", kernel->cluster);
    kernel->lines = lines_;
    auto const begin = source_.begin();
    u32 const line = 1 + u32(std::count(begin, begin + i64(body), '\n'));
    place_ = BodyParser(*kernel, symbols_).parse(source_, body + 1, line);
    kernels_[kernel->name] = kernel;
  }

  std::string const source_;
  std::map<std::string, u64>& variables_;
  SourceLines const* const lines_;  // for the process's life
  size_t place_ = 0;
  int arch_ = 0;
  ModuleSymbols symbols_;
  std::map<std::string, Kernel*> kernels_;
};

}  // namespace

Declaration parse_declaration(std::string const& text) {
  Declaration d;
  std::string type;
  for (std::string const& word : split(trimmed(text), ' ')) {
    if (word.starts_with(".")) {
      if (type_bytes(word) != 0) type = word;
    } else if (d.align == 0 && starts_with_digit(word)) {
      d.align = u32(parse_number(word));
    } else if (!word.empty()) {
      size_t const bracket = word.find('[');
      d.name = word.substr(0, bracket);
      d.array = bracket != std::string::npos;
      if (d.array) d.count = strtoull(word.c_str() + bracket + 1, nullptr, 10);
    }
  }
  d.element_bytes = std::max(1u, type_bytes(type));
  return d;
}

std::map<std::string, Kernel*> parse_module(std::string const& ptx, std::map<std::string, u64>& variables) {
  return ModuleParser(ptx, variables).parse();
}

}  // namespace emu
