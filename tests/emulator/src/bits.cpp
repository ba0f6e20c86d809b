// Logic, shifts and bit fields.
#include "families.h"
#include "registers.h"

namespace emu {
namespace {

constexpr auto bit_and = [](auto a, auto b) { return decltype(a)(a & b); };
constexpr auto bit_or = [](auto a, auto b) { return decltype(a)(a | b); };
constexpr auto bit_xor = [](auto a, auto b) { return decltype(a)(a ^ b); };
constexpr auto bit_not = [](auto a) { return decltype(a)(~a); };
constexpr auto predicate_not = [](u8 a) { return u8(a == 0); };

// Shifts by the width or more give zeros, or signs.
constexpr auto shift_left = [](auto a, u32 by) { return by >= 8 * sizeof(a) ? decltype(a)(0) : decltype(a)(a << by); };
constexpr auto shift_right = [](auto a, u32 by) {
  if (by >= 8 * sizeof(a)) by = 8 * sizeof(a) - 1, a = decltype(a)(std::is_signed_v<decltype(a)> ? a : 0);
  return decltype(a)(a >> by);
};

// b:a shifted as one; the upper word to the left, the lower to the right.
template <bool kWrap>
constexpr auto funnel_left = [](u32 a, u32 b, u32 by) {
  by = kWrap ? by & 31 : std::min(by, 32u);
  return u32((u64(b) << 32 | a) << by >> 32);
};
template <bool kWrap>
constexpr auto funnel_right = [](u32 a, u32 b, u32 by) {
  by = kWrap ? by & 31 : std::min(by, 32u);
  return u32((u64(b) << 32 | a) >> by);
};

constexpr auto population = [](auto a) { return u32(std::popcount(a)); };
constexpr auto leading_zeros = [](auto a) { return u32(std::countl_zero(a)); };
// The place of the highest set bit, or how far it is from the top; all ones without any.
constexpr auto highest = [](auto a) { return a == 0 ? ~0u : u32(8 * sizeof(a) - 1) - u32(std::countl_zero(a)); };
constexpr auto distance_to_top = [](auto a) { return a == 0 ? ~0u : u32(std::countl_zero(a)); };
constexpr auto reverse = [](u32 a) {
  u32 r = 0;
  for (int i = 0; i < 32; ++i) r |= (a >> i & 1) << (31 - i);
  return r;
};

constexpr auto permute_bytes = [](u32 a, u32 b, u32 selectors) {
  u64 const bytes = u64(b) << 32 | a;
  u32 result = 0;
  for (int i = 0; i < 4; ++i) {
    u32 const selector = selectors >> 4 * i & 15, byte = u32(bytes >> 8 * (selector & 7)) & 255;
    u32 const sign = byte & 128 ? 255 : 0;  // selector bit 3 replicates it
    result |= (selector & 8 ? sign : byte) << 8 * i;
  }
  return result;
};

constexpr auto extract_unsigned = [](u32 a, u32 position, u32 length) {
  position &= 255, length &= 255;
  u32 const value = position > 31 ? 0 : a >> position;
  return length > 31 ? value : value & ((1u << length) - 1);
};

template <class T>
void insert_field(Warp& w, Instruction const& i, u32 mask) {
  Lanes<T> sa, sb, result;
  Lanes<u32> sp, sl;
  T const *const field = read<T>(w, i.operands[1], sa), *const base = read<T>(w, i.operands[2], sb);
  u32 const *const position = read<u32>(w, i.operands[3], sp), *const length = read<u32>(w, i.operands[4], sl);
  constexpr u32 kBits = 8 * sizeof(T);
  for (int l = 0; l < kLanes; ++l) {
    // Beyond 255 neither is defined; this is what the device does.
    u32 const p = kBits == 32 ? position[l] & 255 : position[l], n = length[l] & 255;
    T const bits = n >= kBits ? T(~T(0)) : T((T(1) << n) - 1);
    result[l] = p >= kBits ? base[l] : T((base[l] & ~(bits << p)) | ((field[l] & bits) << p));
  }
  write<T>(w, i.operands[0], mask, result);
}

void lookup3(Warp& w, Instruction const& i, u32 mask) {
  Lanes<u32> sa, sb, sc, result;
  u32 const *const a = read<u32>(w, i.operands[1], sa), *const b = read<u32>(w, i.operands[2], sb),
                   *const c = read<u32>(w, i.operands[3], sc);
  u32 const table = u32(i.operands[4].value);
  for (int l = 0; l < kLanes; ++l) {
    result[l] = 0;
    for (int row = 0; row < 8; ++row)
      if (table >> row & 1) result[l] |= (row & 4 ? a[l] : ~a[l]) & (row & 2 ? b[l] : ~b[l]) & (row & 1 ? c[l] : ~c[l]);
  }
  write<u32>(w, i.operands[0], mask, result);
}

template <auto f>
Execute logic(std::string const& type) {
  if (type == "pred") return binary<u8, u8, u8, f>;
  return by_unsigned_type(type, []<class T>() -> Execute { return binary<T, T, T, f>; });
}

Execute decode_funnel_shift(Mnemonic& m) {
  bool const left = m.take("l");
  if (!left && !m.take("r")) return nullptr;
  if (m.take("wrap"))
    return left ? ternary<u32, u32, u32, u32, funnel_left<true>> : ternary<u32, u32, u32, u32, funnel_right<true>>;
  if (m.take("clamp"))
    return left ? ternary<u32, u32, u32, u32, funnel_left<false>> : ternary<u32, u32, u32, u32, funnel_right<false>>;
  return nullptr;
}

}  // namespace

Execute decode_bits(Instruction& i, Mnemonic& m) {
  std::string const root = m.root(), type = m.type();
  m.take_type();
  bool const b32 = type == "b32", b64 = type == "b64";
  if (root == "and") return logic<bit_and>(type);
  if (root == "or") return logic<bit_or>(type);
  if (root == "xor") return logic<bit_xor>(type);
  if (root == "not") {
    if (type == "pred") return unary<u8, u8, predicate_not>;
    return by_unsigned_type(type, []<class T>() -> Execute { return unary<T, T, bit_not>; });
  }
  if (root == "shl") return by_unsigned_type(type, []<class T>() -> Execute { return binary<T, u32, T, shift_left>; });
  if (root == "shr") return by_integer_type(type, []<class T>() -> Execute { return binary<T, u32, T, shift_right>; });
  if (root == "shf" && b32) return decode_funnel_shift(m);
  if (root == "bfe" && type == "u32") return ternary<u32, u32, u32, u32, extract_unsigned>;
  if (root == "bfi") return b32 ? insert_field<u32> : b64 ? insert_field<u64> : nullptr;
  if (root == "brev" && b32) return unary<u32, u32, reverse>;
  if (root == "popc") return b32 ? unary<u32, u32, population> : b64 ? unary<u64, u32, population> : nullptr;
  if (root == "clz") return b32 ? unary<u32, u32, leading_zeros> : b64 ? unary<u64, u32, leading_zeros> : nullptr;
  if (root == "bfind" && type == "u32")
    return m.take("shiftamt") ? unary<u32, u32, distance_to_top> : unary<u32, u32, highest>;
  if (root == "prmt" && b32) return ternary<u32, u32, u32, u32, permute_bytes>;
  if (root == "lop3" && b32 && i.operands.size() == 5 && i.operands[4].kind == Operand::kImmediate) return lookup3;
  return nullptr;
}

}  // namespace emu
