// Number formats narrower than float32.
#pragma once

#include <cmath>

#include "base.h"

namespace emu {

constexpr u32 kExponentMask = 0x7f800000, kSignMask = 0x80000000;
constexpr u32 kNan = 0x7fffffff;  // what instructions make where they make one

// Subnormal numbers become zeros of their sign.
inline float flush(float x) {
  u32 const bits = std::bit_cast<u32>(x);
  return bits & kExponentMask ? x : std::bit_cast<float>(bits & kSignMask);
}

inline float from_bf16(u16 x) { return std::bit_cast<float>(u32(x) << 16); }

// To nearest even; NaN becomes the canonical one.
inline u16 to_bf16(float x) {
  u32 const bits = std::bit_cast<u32>(x);
  if ((bits & ~kSignMask) > kExponentMask) return 0x7fff;
  return u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_f16(u16 x) {
  float const value = float(std::bit_cast<_Float16>(x));
  return value == value ? value : std::bit_cast<float>(kNan);
}
inline u16 to_f16(float x) { return x != x ? 0x7fff : std::bit_cast<u16>(_Float16(x)); }

inline float from_e4m3(u8 x) {
  int const exponent = x >> 3 & 15, mantissa = x & 7;
  if ((x & 0x7f) == 0x7f) return NAN;
  float const magnitude = exponent ? std::ldexp(1 + mantissa / 8.f, exponent - 7) : std::ldexp(mantissa / 8.f, -6);
  return x & 0x80 ? -magnitude : magnitude;
}

// To nearest even, saturating to 448; NaN stays NaN.
inline u8 to_e4m3(float x) {
  constexpr float kLargest = 448, kSmallestNormal = 0x1p-6f;
  if (x != x) return 0x7f;
  u8 const sign = u8(std::signbit(x) << 7);
  x = std::fabs(x);
  if (x >= kLargest) return sign | 0x7e;
  int exponent;
  std::frexp(x, &exponent);
  float const step = std::ldexp(1.f, std::max(exponent - 1, -6) - 3);
  float const rounded = std::nearbyint(x / step) * step;
  if (rounded >= kLargest) return sign | 0x7e;
  if (rounded < kSmallestNormal) return sign | u8(rounded * 512);
  float const fraction = std::frexp(rounded, &exponent);  // in [1/2, 1)
  return sign | u8((exponent - 1 + 7) << 3 | u8((fraction * 2 - 1) * 8));
}

// A power of two; 0xff is NaN.
inline u16 bf16_from_ue8m0(u8 x) { return x == 0xff ? 0x7fff : x ? u16(x << 7) : 0x0040; }

// Rounded up or towards zero; saturating.
template <bool kUp>
inline u8 to_ue8m0(float x) {
  u32 const bits = std::bit_cast<u32>(x) & ~kSignMask, exponent = bits >> 23, mantissa = bits & 0x7fffff;
  if (exponent == 255) return mantissa ? 0xff : 0xfe;
  constexpr u32 kHalf = 0x400000;  // of a subnormal: 2^-127, the smallest power of two
  bool const up = kUp && (exponent ? mantissa != 0 : mantissa > kHalf);
  return u8(std::min(exponent + up, 254u));
}

}  // namespace emu
