// ex2.approx and lg2.approx, bit for bit as an H200 has them.
#pragma once

namespace emu {

float approximate_ex2(float x);
float approximate_lg2(float x);

}  // namespace emu
