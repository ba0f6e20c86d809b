// Small string helpers of the parser.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base.h"

namespace emu {

std::string trimmed(std::string_view text);
// At top level only: separators inside (), [] and {} do not count. Parts are trimmed; none for an empty text.
std::vector<std::string> split(std::string_view text, char separator);
bool starts_with_digit(std::string_view text);
u64 parse_number(std::string const& text);  // 12, -3, 0x1F, 0f3F800000, 0d..., 1.5 (as float32)

}  // namespace emu
