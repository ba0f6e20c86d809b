#include "text.h"

#include <cctype>
#include <cstdarg>
#include <cstdlib>

#include "base.h"

namespace emu {

void fault(char const* format, ...) {
  char text[8192];  // a deadlock names every warp
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  throw Fault(text);
}

std::string trimmed(std::string_view text) {
  constexpr char const* kBlank = " \t\n\r";
  size_t const begin = text.find_first_not_of(kBlank);
  if (begin == text.npos) return "";
  return std::string(text.substr(begin, text.find_last_not_of(kBlank) - begin + 1));
}

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  int depth = 0;
  size_t begin = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    char const c = text[i];
    if (c == '{' || c == '[' || c == '(') ++depth;
    if (c == '}' || c == ']' || c == ')') --depth;
    if (c == separator && depth == 0) {
      parts.push_back(trimmed(text.substr(begin, i - begin)));
      begin = i + 1;
    }
  }
  std::string const last = trimmed(text.substr(begin));
  if (!last.empty() || !parts.empty()) parts.push_back(last);
  return parts;
}

bool starts_with_digit(std::string_view text) {
  return !text.empty() && (isdigit(u8(text[0])) || (text[0] == '-' && text.size() > 1 && isdigit(u8(text[1]))));
}

u64 parse_number(std::string const& text) {
  if (text.size() > 2 && text[0] == '0' && std::string("fFdD").find(text[1]) != std::string::npos)
    return strtoull(text.c_str() + 2, nullptr, 16);
  char* end;
  u64 const number = text.find('.') != std::string::npos ? std::bit_cast<u32>(strtof(text.c_str(), &end))
                     : text[0] == '-'                    ? u64(strtoll(text.c_str(), &end, 0))
                                                         : strtoull(text.c_str(), &end, 0);
  if (*end != 0 && strcmp(end, "U") != 0) fault("%s is not a number", text.c_str());
  return number;
}

}  // namespace emu
