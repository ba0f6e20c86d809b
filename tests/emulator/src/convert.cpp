// Conversions between number formats, and moves, which also pack and unpack.
#include <cmath>
#include <limits>

#include "families.h"
#include "formats.h"
#include "registers.h"

namespace emu {
namespace {

template <class To>
constexpr auto plain = [](auto x) { return To(x); };
constexpr auto unchanged = [](auto x) { return x; };
constexpr auto f32_to_bf16 = [](float x) { return to_bf16(x); };
constexpr auto bf16_to_f32 = [](u16 x) { return from_bf16(x); };
constexpr auto f32_to_f16 = [](float x) { return to_f16(x); };
constexpr auto f16_to_f32 = [](u16 x) { return from_f16(x); };
// Of two sources, the first becomes the upper half.
constexpr auto f32_to_bf16x2 = [](float a, float b) { return u32(to_bf16(a)) << 16 | to_bf16(b); };
constexpr auto f32_to_f16x2 = [](float a, float b) { return u32(to_f16(a)) << 16 | to_f16(b); };
constexpr auto f32_to_e4m3x2 = [](float a, float b) { return u16(to_e4m3(a) << 8 | to_e4m3(b)); };
template <bool kUp>
constexpr auto f32_to_ue8m0x2 = [](float a, float b) { return u16(to_ue8m0<kUp>(a) << 8 | to_ue8m0<kUp>(b)); };
constexpr auto e4m3x2_to_f16x2 = [](u16 x) {
  return u32(to_f16(from_e4m3(u8(x >> 8)))) << 16 | to_f16(from_e4m3(u8(x)));
};
constexpr auto ue8m0x2_to_bf16x2 = [](u16 x) {
  return u32(bf16_from_ue8m0(u8(x >> 8))) << 16 | bf16_from_ue8m0(u8(x));
};

// Saturates; NaN gives 0, or of 64 bits the highest alone.
template <class To, auto round>
constexpr auto to_integer = [](float x) {
  using Limits = std::numeric_limits<To>;
  if (x != x) return sizeof(To) == 8 ? To(1ull << 63) : To(0);
  double const r = round(double(x));
  return r <= double(Limits::min()) ? Limits::min() : r >= double(Limits::max()) ? Limits::max() : To(r);
};
constexpr auto nearest = [](double x) { return std::nearbyint(x); };
constexpr auto toward_zero = [](double x) { return std::trunc(x); };
constexpr auto down = [](double x) { return std::floor(x); };
constexpr auto up = [](double x) { return std::ceil(x); };

template <class To>
Execute float_to_integer(Mnemonic& m) {
  m.ignore({"ftz"});  // a subnormal rounds like zero unless upwards, and nobody rounds so
  if (m.take("rni")) return unary<float, To, to_integer<To, nearest>>;
  if (m.take("rzi")) return unary<float, To, to_integer<To, toward_zero>>;
  if (m.take("rmi")) return unary<float, To, to_integer<To, down>>;
  if (m.take("rpi")) return unary<float, To, to_integer<To, up>>;
  return nullptr;
}

template <class From>
Execute from_integer(std::string const& to, Mnemonic& m) {
  if (to == "u8") return unary<From, u8, plain<u8>>;
  if (to == "s8") return unary<From, i8, plain<i8>>;
  if (to == "f32" && m.take("rn")) return unary<From, float, plain<float>>;
  return by_integer_type(to, []<class To>() -> Execute { return unary<From, To, plain<To>>; });
}

Execute decode_cvt(Instruction const& i, Mnemonic& m, std::string const& to, std::string const& from) {
  bool const two = i.operands.size() == 3;
  if (from == "f32") {
    if (to == "bf16" && m.take("rn")) return unary<float, u16, f32_to_bf16>;
    if (to == "f16" && m.take("rn")) return unary<float, u16, f32_to_f16>;
    if (to == "bf16x2" && two && m.take("rn")) return binary<float, float, u32, f32_to_bf16x2>;
    if (to == "f16x2" && two && m.take("rn")) return binary<float, float, u32, f32_to_f16x2>;
    if (to == "e4m3x2" && m.take("rn") && m.take("satfinite")) return binary<float, float, u16, f32_to_e4m3x2>;
    if (to == "ue8m0x2" && m.take("satfinite")) {
      if (m.take("rp")) return binary<float, float, u16, f32_to_ue8m0x2<true>>;
      if (m.take("rz")) return binary<float, float, u16, f32_to_ue8m0x2<false>>;
    }
    return by_integer_type(to, [&]<class To>() { return float_to_integer<To>(m); });
  }
  if (from == "bf16" && to == "f32") return unary<u16, float, bf16_to_f32>;
  if (from == "f16" && to == "f32") return unary<u16, float, f16_to_f32>;
  if (from == "e4m3x2" && to == "f16x2" && m.take("rn")) return unary<u16, u32, e4m3x2_to_f16x2>;
  if (from == "ue8m0x2" && to == "bf16x2" && m.take("rn")) return unary<u16, u32, ue8m0x2_to_bf16x2>;
  if (from == "u8") return from_integer<u8>(to, m);
  if (from == "s8") return from_integer<i8>(to, m);
  return by_integer_type(from, [&]<class From>() { return from_integer<From>(to, m); });
}

// {a, b} -> register
template <class Part>
void pack(Warp& w, Instruction const& i, u32 mask) {
  Operand const &to = i.operands[0], &from = i.operands[1];
  for (u32 n = 0; n < from.parts.size(); ++n) {
    Lanes<Part> scratch;
    Part const* const values = read<Part>(w, from.parts[n], scratch);
    u8* const lanes = w.registers + to.offset + n * sizeof(Part);
    for_lanes(mask, [&](int l) { std::memcpy(lanes + l * to.width, &values[l], sizeof(Part)); });
  }
}

// register -> {a, b}, of which some may be _
template <class Whole, class Part>
void unpack(Warp& w, Instruction const& i, u32 mask) {
  Whole values[kLanes];  // a copy: a part may be the source itself
  Lanes<Whole> scratch;
  std::memcpy(values, read<Whole>(w, i.operands[1], scratch), sizeof values);
  std::vector<Operand> const& parts = i.operands[0].parts;
  for (u32 n = 0; n < parts.size(); ++n) {
    Lanes<Part> part;
    for (int l = 0; l < kLanes; ++l) part[l] = Part(values[l] >> 8 * n * sizeof(Part));
    write<Part>(w, parts[n], mask, part);
  }
}

Execute decode_pack(size_t part_bytes) {
  switch (part_bytes) {
    case 1: return pack<u8>;
    case 2: return pack<u16>;
    case 4: return pack<u32>;
    case 8: return pack<u64>;
  }
  return nullptr;
}

template <class Whole>
Execute decode_unpack(size_t part_bytes) {
  switch (part_bytes) {
    case 1: return unpack<Whole, u8>;
    case 2: return unpack<Whole, u16>;
    case 4: return unpack<Whole, u32>;
    case 8: return unpack<Whole, u64>;
  }
  return nullptr;
}

Execute decode_mov(Instruction& i, std::string const& type) {
  if (type == "pred") return unary<u8, u8, unchanged>;
  size_t const bytes = type_bytes(type);
  if (i.operands[1].kind == Operand::kVector) return decode_pack(bytes / i.operands[1].parts.size());
  if (i.operands[0].kind == Operand::kVector) {
    size_t const part_bytes = bytes / i.operands[0].parts.size();
    switch (bytes) {
      case 2: return decode_unpack<u16>(part_bytes);
      case 4: return decode_unpack<u32>(part_bytes);
      case 8: return decode_unpack<u64>(part_bytes);
      case 16: return decode_unpack<u128>(part_bytes);
    }
  }
  switch (bytes) {
    case 2: return unary<u16, u16, unchanged>;
    case 4: return unary<u32, u32, unchanged>;
    case 8: return unary<u64, u64, unchanged>;
    case 16: return unary<u128, u128, unchanged>;
  }
  return nullptr;
}

}  // namespace

Execute decode_convert(Instruction& i, Mnemonic& m) {
  std::string const type = m.type();
  m.take_type();
  if (m.root() == "mov") return decode_mov(i, type);
  if (m.root() != "cvt") return nullptr;
  // cvt[.rounding...].to.from
  for (char const* to : {"u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64", "f32", "f16", "bf16", "f16x2", "bf16x2",
                         "e4m3x2", "ue8m0x2"}) {
    if (to == type || !m.take(to)) continue;
    return decode_cvt(i, m, to, type);
  }
  return nullptr;
}

}  // namespace emu
