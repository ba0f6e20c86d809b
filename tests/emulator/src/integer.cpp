// Integer arithmetic. Signed overflow wraps (-fwrapv).
#include "families.h"
#include "registers.h"

namespace emu {
namespace {

constexpr auto add = [](auto a, auto b) { return decltype(a)(a + b); };
constexpr auto subtract = [](auto a, auto b) { return decltype(a)(a - b); };
constexpr auto multiply = [](auto a, auto b) { return decltype(a)(a * b); };
// By zero: all ones, the remainder too, as the device's routines give. Of the least number by -1, which stops the CPU:
// itself, and 0.
template <class T>
constexpr bool is_minus_one(T b) {
  return std::is_signed_v<T> && b == T(-1);
}
constexpr auto divide = [](auto a, auto b) {
  using T = decltype(a);
  return b == 0 ? T(-1) : is_minus_one(b) ? T(0 - a) : T(a / b);
};
constexpr auto remainder = [](auto a, auto b) {
  using T = decltype(a);
  return b == 0 ? T(-1) : is_minus_one(b) ? T(0) : T(a % b);
};
constexpr auto minimum = [](auto a, auto b) { return a < b ? a : b; };
constexpr auto maximum = [](auto a, auto b) { return a > b ? a : b; };
constexpr auto negate = [](auto a) { return decltype(a)(-a); };
constexpr auto absolute = [](auto a) { return a < 0 ? decltype(a)(-a) : a; };

template <class Wide>
constexpr auto multiply_wide = [](auto a, auto b) { return Wide(Wide(a) * Wide(b)); };
template <class Wide>
constexpr auto multiply_high = [](auto a, auto b) { return decltype(a)((Wide(a) * Wide(b)) >> (8 * sizeof(a))); };
template <class Wide>
constexpr auto multiply_wide_add = [](auto a, auto b, auto c) { return Wide(Wide(a) * Wide(b) + c); };
constexpr auto multiply_add = [](auto a, auto b, auto c) { return decltype(a)(a * b + c); };

template <auto f>
Execute by_type(std::string const& type) {
  return by_integer_type(type, []<class T>() -> Execute { return binary<T, T, T, f>; });
}

Execute decode_multiply(Mnemonic& m, std::string const& type) {
  if (m.take("wide")) {
    if (type == "s16") return binary<i16, i16, i32, multiply_wide<i32>>;
    if (type == "u16") return binary<u16, u16, u32, multiply_wide<u32>>;
    if (type == "s32") return binary<i32, i32, i64, multiply_wide<i64>>;
    if (type == "u32") return binary<u32, u32, u64, multiply_wide<u64>>;
    return nullptr;
  }
  if (m.take("hi")) {
    if (type == "s32") return binary<i32, i32, i32, multiply_high<i64>>;
    if (type == "u32") return binary<u32, u32, u32, multiply_high<u64>>;
    if (type == "s64") return binary<i64, i64, i64, multiply_high<__int128>>;
    if (type == "u64") return binary<u64, u64, u64, multiply_high<u128>>;
    return nullptr;
  }
  return m.take("lo") ? by_type<multiply>(type) : nullptr;
}

Execute decode_multiply_add(Mnemonic& m, std::string const& type) {
  if (m.take("wide")) {
    if (type == "s32") return ternary<i32, i32, i64, i64, multiply_wide_add<i64>>;
    if (type == "u32") return ternary<u32, u32, u64, u64, multiply_wide_add<u64>>;
    return nullptr;
  }
  if (!m.take("lo")) return nullptr;
  return by_integer_type(type, []<class T>() -> Execute { return ternary<T, T, T, T, multiply_add>; });
}

template <auto f>
Execute signed_unary(std::string const& type) {
  if (type == "s16") return unary<i16, i16, f>;
  if (type == "s32") return unary<i32, i32, f>;
  if (type == "s64") return unary<i64, i64, f>;
  return nullptr;
}

}  // namespace

Execute decode_integer(Instruction&, Mnemonic& m) {
  std::string const root = m.root(), type = m.type();
  m.take_type();
  if (root == "add") return by_type<add>(type);
  if (root == "sub") return by_type<subtract>(type);
  if (root == "mul") return decode_multiply(m, type);
  if (root == "mad") return decode_multiply_add(m, type);
  if (root == "div") return by_type<divide>(type);
  if (root == "rem") return by_type<remainder>(type);
  if (root == "min") return by_type<minimum>(type);
  if (root == "max") return by_type<maximum>(type);
  if (root == "neg") return signed_unary<negate>(type);
  if (root == "abs") return signed_unary<absolute>(type);
  return nullptr;
}

}  // namespace emu
