// What every part of the emulator uses: short names, the one kind of error, lanes.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace emu {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using u128 = unsigned __int128;
using i8 = int8_t;
using i16 = int16_t;
using i32 = int32_t;
using i64 = int64_t;

constexpr int kLanes = 32;
constexpr u32 kAllLanes = ~0u;

// Ends a launch: what the kernel did, or is, has no defined result. The launch's caller adds where it happened.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] void fault(char const* format, ...) __attribute__((format(printf, 1, 2)));

inline bool has_lane(u32 mask, int lane) { return mask >> lane & 1; }
inline int first_lane(u32 mask) { return __builtin_ctz(mask); }

template <class F>
inline void for_lanes(u32 mask, F const& f) {
  for (; mask != 0; mask &= mask - 1) f(__builtin_ctz(mask));
}

template <class T>
inline T load(void const* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

}  // namespace emu
