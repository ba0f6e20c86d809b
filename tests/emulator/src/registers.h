// Reading and writing operands, 32 lanes at a time.
#pragma once

#include <algorithm>
#include <type_traits>

#include "machine.h"

namespace emu {

template <class T>
using Lanes = T[kLanes];

// A symbol's address, or the number.
inline u64 immediate(Warp const& w, Operand const& o) {
  Cta const& cta = *w.cta;
  switch (o.symbol) {
    case Symbol::kParameter: return reinterpret_cast<u64>(cta.cluster->launch->parameters) + o.value;
    case Symbol::kStaticShared: return (cta.rank << 24) + kSharedReserved + u32(o.value);
    case Symbol::kDynamicShared: return (cta.rank << 24) + cta.dynamic_offset;
    default: return o.value;
  }
}

// The first 8 bytes, or as many as T has, of lanes of another width.
template <class From, class T>
inline void convert(u8 const* from, Lanes<T>& to) {
  for (int l = 0; l < kLanes; ++l) {
    u64 const value = u64(load<From>(from + l * sizeof(From)));
    T t{};
    std::memcpy(&t, &value, std::min(sizeof t, sizeof value));
    to[l] = t;
  }
}

// Where the operand's 32 values are: in the register file, or in `scratch`. Wider registers are cut to T.
template <class T>
inline T const* read(Warp const& w, Operand const& o, Lanes<T>& scratch) {
  constexpr size_t kBytes = sizeof(T) < 8 ? sizeof(T) : 8;
  switch (o.kind) {
    case Operand::kRegister: {
      u8 const* const from = w.registers + o.offset;
      if (o.width == sizeof(T)) return reinterpret_cast<T const*>(from);
      switch (o.width) {  // (each a loop of its own, which the compiler can vectorise)
        case 1: convert<u8>(from, scratch); break;
        case 2: convert<u16>(from, scratch); break;
        case 4: convert<u32>(from, scratch); break;
        case 8: convert<u64>(from, scratch); break;
        case 16: convert<u128>(from, scratch); break;
      }
      return scratch;
    }
    case Operand::kImmediate: {
      u64 const value = immediate(w, o);
      T t{};
      std::memcpy(&t, &value, kBytes);
      std::fill_n(scratch, kLanes, t);
      return scratch;
    }
    case Operand::kSpecial:
      for (int l = 0; l < kLanes; ++l) {
        u64 const value = special_value(w, l, int(o.value));
        std::memcpy(&scratch[l], &value, kBytes);
      }
      return scratch;
    default: fault("an operand that cannot be read");
  }
}

template <class T>
inline T read_lane(Warp const& w, Operand const& o, int lane) {
  if (o.kind == Operand::kRegister) {
    T value{};
    std::memcpy(&value, w.registers + o.offset + u32(lane) * o.width, std::min<size_t>(o.width, sizeof value));
    return value;
  }
  Lanes<T> scratch;
  return read<T>(w, o, scratch)[lane];
}

// Predicates may be negated where an instruction takes them as operands.
inline bool read_predicate(Warp const& w, Operand const& o, int lane) {
  return (read_lane<u8>(w, o, lane) != 0) != o.negated;
}

template <class To, class T>
inline void write_extended(u8* to, u32 mask, T const* values) {
  for_lanes(mask, [&](int l) {
    To const value = To(std::is_signed_v<T> ? i64(values[l]) : i64(u64(values[l])));
    std::memcpy(to + l * sizeof(To), &value, sizeof(To));
  });
}

// Narrower values are extended, by their sign if they have one.
template <class T>
inline void write(Warp& w, Operand const& o, u32 mask, T const* values) {
  if (o.kind == Operand::kNone) return;
  u8* const to = w.registers + o.offset;
  if (o.width == sizeof(T)) {
    T* const registers = reinterpret_cast<T*>(to);
    if (mask == kAllLanes)
      std::memcpy(registers, values, sizeof(T) * kLanes);
    else
      for_lanes(mask, [&](int l) { registers[l] = values[l]; });
    return;
  }
  switch (o.width) {
    case 1: return write_extended<u8>(to, mask, values);
    case 2: return write_extended<u16>(to, mask, values);
    case 4: return write_extended<u32>(to, mask, values);
    case 8: return write_extended<u64>(to, mask, values);
  }
  for_lanes(mask, [&](int l) {
    std::memset(to + l * o.width, 0, o.width);
    std::memcpy(to + l * o.width, &values[l], sizeof(T));
  });
}

template <class T>
inline T* register_lanes(Warp& w, Operand const& o) {
  return reinterpret_cast<T*>(w.registers + o.offset);
}

// --- instructions that are a function of each lane's operands; the first operand is the result

template <class T, class R, auto f>
void unary(Warp& w, Instruction const& i, u32 mask) {
  Lanes<T> sa;
  Lanes<R> result;
  T const* const a = read<T>(w, i.operands[1], sa);
  for (int l = 0; l < kLanes; ++l) result[l] = f(a[l]);
  write<R>(w, i.operands[0], mask, result);
}

template <class A, class B, class R, auto f>
void binary(Warp& w, Instruction const& i, u32 mask) {
  Lanes<A> sa;
  Lanes<B> sb;
  Lanes<R> result;
  A const* const a = read<A>(w, i.operands[1], sa);
  B const* const b = read<B>(w, i.operands[2], sb);
  for (int l = 0; l < kLanes; ++l) result[l] = f(a[l], b[l]);
  write<R>(w, i.operands[0], mask, result);
}

template <class A, class B, class C, class R, auto f>
void ternary(Warp& w, Instruction const& i, u32 mask) {
  Lanes<A> sa;
  Lanes<B> sb;
  Lanes<C> sc;
  Lanes<R> result;
  A const* const a = read<A>(w, i.operands[1], sa);
  B const* const b = read<B>(w, i.operands[2], sb);
  C const* const c = read<C>(w, i.operands[3], sc);
  for (int l = 0; l < kLanes; ++l) result[l] = f(a[l], b[l], c[l]);
  write<R>(w, i.operands[0], mask, result);
}

// --- which C++ type a PTX type is; nullptr where `choose` has no version for it

template <class F>
Execute by_unsigned_type(std::string const& type, F const& choose) {
  if (type == "u16" || type == "b16") return choose.template operator()<u16>();
  if (type == "u32" || type == "b32") return choose.template operator()<u32>();
  if (type == "u64" || type == "b64") return choose.template operator()<u64>();
  return nullptr;
}

template <class F>
Execute by_integer_type(std::string const& type, F const& choose) {
  if (type == "s16") return choose.template operator()<i16>();
  if (type == "s32") return choose.template operator()<i32>();
  if (type == "s64") return choose.template operator()<i64>();
  return by_unsigned_type(type, choose);
}

}  // namespace emu
