// Arithmetic on float32, pairs of it, and bf16. The approximations rcp, sqrt, rsqrt, div and tanh come from libm, which
// is nearer to the true value than the hardware's; they are not the hardware's bits.
#include <cmath>

#include "approximate.h"
#include "families.h"
#include "formats.h"
#include "registers.h"

namespace emu {
namespace {

// Each with and without .ftz, which flushes operands and results.
template <auto f>
constexpr auto flushing = [](auto... x) { return flush(f(flush(x)...)); };

constexpr auto add = [](float a, float b) { return a + b; };
constexpr auto subtract = [](float a, float b) { return a - b; };
constexpr auto multiply = [](float a, float b) { return a * b; };
constexpr auto divide = [](float a, float b) { return a / b; };
// a * (1 / b), whose reciprocal is zero where it would be subnormal: for b above 2^126.
constexpr auto divide_approximately = [](float a, float b) {
  float const scale = std::fabs(b) < 0x1p-126f ? 0x1p24f : 1;
  return a * scale * flush(1 / (b * scale));
};
constexpr auto fused = [](float a, float b, float c) { return std::fma(a, b, c); };
// A NaN loses against a number; -0 < +0.
constexpr auto minimum = [](float a, float b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
};
constexpr auto maximum = [](float a, float b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
};
template <auto f>  // .NaN: a NaN wins
constexpr auto of_numbers =
    [](float a, float b) { return a != a || b != b ? std::bit_cast<float>(0x7fffffffu) : f(a, b); };
constexpr auto negate = [](float a) { return -a; };
constexpr auto absolute = [](float a) { return std::fabs(a); };
constexpr auto reciprocal = [](float a) { return 1.f / a; };
constexpr auto root = [](float a) { return std::sqrt(a); };
constexpr auto reciprocal_root = [](float a) { return 1.f / std::sqrt(a); };
constexpr auto power_of_2 = [](float a) { return approximate_ex2(a); };
constexpr auto logarithm_2 = [](float a) { return approximate_lg2(a); };
constexpr auto tangent = [](float a) { return std::tanh(a); };

template <auto f>
constexpr auto on_pairs = [](auto... x) {
  u64 result = 0;
  for (int i = 0; i < 2; ++i) result |= u64(std::bit_cast<u32>(f(std::bit_cast<float>(u32(x >> 32 * i))...))) << 32 * i;
  return result;
};
// One rounding to float32 and one to bf16 are as good as one for sums and products of bf16. Of products and sums in
// one, what float32 leaves out shows in its last bit.
constexpr auto fused_bf16 = [](float a, float b, float c) {
  double const product = double(a) * b, sum = product + c, from_c = sum - product;
  double const rest = (product - (sum - from_c)) + (c - from_c);
  float const rounded = float(sum);
  bool const exact = rest == 0 && double(rounded) == sum;
  u32 bits = std::bit_cast<u32>(rounded);
  if (exact || rounded != rounded || (bits & ~kSignMask) >= kExponentMask) return rounded;
  bool const away = std::fabs(rounded) > std::fabs(sum) || (double(rounded) == sum && (rest < 0) == (sum > 0));
  return std::bit_cast<float>((bits - away) | 1);
};
template <auto f>
constexpr auto on_bf16 = [](auto... x) { return to_bf16(f(from_bf16(u16(x))...)); };
template <auto f>
constexpr auto on_bf16_pairs =
    [](auto... x) { return u32(to_bf16(f(from_bf16(u16(x))...))) | u32(to_bf16(f(from_bf16(u16(x >> 16))...))) << 16; };

template <auto f>
Execute one(bool ftz) {
  return ftz ? unary<float, float, flushing<f>> : unary<float, float, f>;
}

template <auto f>
Execute two(std::string const& type, bool ftz) {
  if (type == "f32") return ftz ? binary<float, float, float, flushing<f>> : binary<float, float, float, f>;
  if (type == "f32x2") return ftz ? binary<u64, u64, u64, on_pairs<flushing<f>>> : binary<u64, u64, u64, on_pairs<f>>;
  if (type == "bf16" && !ftz) return binary<u16, u16, u16, on_bf16<f>>;
  if (type == "bf16x2" && !ftz) return binary<u32, u32, u32, on_bf16_pairs<f>>;
  return nullptr;
}

template <auto f>
Execute three(std::string const& type, bool ftz) {
  if (type == "f32")
    return ftz ? ternary<float, float, float, float, flushing<f>> : ternary<float, float, float, float, f>;
  if (type == "f32x2")
    return ftz ? ternary<u64, u64, u64, u64, on_pairs<flushing<f>>> : ternary<u64, u64, u64, u64, on_pairs<f>>;
  if (type == "bf16" && !ftz) return ternary<u16, u16, u16, u16, on_bf16<fused_bf16>>;
  if (type == "bf16x2" && !ftz) return ternary<u32, u32, u32, u32, on_bf16_pairs<fused_bf16>>;
  return nullptr;
}

}  // namespace

Execute decode_float(Instruction& i, Mnemonic& m) {
  std::string const name = m.root(), type = m.type();
  if (type != "f32" && type != "f32x2" && type != "bf16" && type != "bf16x2") return nullptr;
  m.take_type();
  bool const ftz = m.take("ftz"), f32 = type == "f32";
  if (i.operands.size() == 3) {
    bool const nan = (name == "min" || name == "max") && m.take("NaN");
    if (nan && !f32) return nullptr;
    if (name == "min") return nan ? two<of_numbers<minimum>>(type, ftz) : two<minimum>(type, ftz);
    if (name == "max") return nan ? two<of_numbers<maximum>>(type, ftz) : two<maximum>(type, ftz);
    m.take("rn");  // no other rounding is known
    if (name == "add") return two<add>(type, ftz);
    if (name == "sub") return two<subtract>(type, ftz);
    if (name == "mul") return two<multiply>(type, ftz);
    if (name == "div" && f32) {
      if (m.take("approx")) return two<divide_approximately>(type, ftz);
      m.ignore({"full"});
      return two<divide>(type, ftz);
    }
  }
  if (name == "fma" && m.take("rn")) return three<fused>(type, ftz);
  if (!f32) return nullptr;
  if (name == "neg") return one<negate>(ftz);
  if (name == "abs") return one<absolute>(ftz);
  m.ignore({"approx", "rn"});
  if (name == "rcp") return one<reciprocal>(ftz);
  if (name == "sqrt") return one<root>(ftz);
  if (name == "rsqrt") return one<reciprocal_root>(ftz);
  if (name == "ex2") return one<power_of_2>(ftz);
  if (name == "lg2") return one<logarithm_2>(ftz);
  if (name == "tanh") return one<tangent>(ftz);
  return nullptr;
}

}  // namespace emu
