// The order of candidates: by score descending, by position ascending, as one integer that descends.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "config.h"

namespace dsa::topk {

constexpr uint32_t kSign = 0x80000000u;
constexpr float kNothing = -__builtin_inff();  // is never a candidate

// How a vector of 16 bytes holds scores.
struct Fp32 {
  using Element = float;
  static constexpr int kPerVector = 4, kKeyBits = 32;
  static constexpr uint32_t kNothingWord = 0xff800000u;
  // Bits of fp32.
  __device__ static uint32_t get(uint4 const& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }
};

struct Bf16 {
  using Element = uint16_t;
  static constexpr int kPerVector = 8, kKeyBits = 16;
  static constexpr uint32_t kNothingWord = 0xff80ff80u;
  __device__ static uint32_t get(uint4 const& v, int i) {
    uint32_t const pair = Fp32::get(v, i / 2);
    return i % 2 == 0 ? pair << 16 : pair & 0xffff0000u;
  }
};

__device__ __forceinline__ bool can_be_chosen(uint32_t bits) { return __uint_as_float(bits) > kNothing; }  // nor NaN

// Rises with the score, -0 like +0. Of what can be chosen.
__device__ __forceinline__ uint32_t key_of(uint32_t bits) {
  uint32_t const b = __float_as_uint(__uint_as_float(bits) + 0.0f);  // -0 + 0 is +0
  return b ^ (uint32_t(int32_t(b) >> 31) | kSign);
}

// The same, and 0 for what cannot be chosen.
__device__ __forceinline__ uint32_t ordered(uint32_t bits) { return can_be_chosen(bits) ? key_of(bits) : 0; }

__device__ __forceinline__ float score_of(uint32_t ordered) {
  return __uint_as_float(ordered & kSign ? ordered & ~kSign : ~ordered);
}

__device__ __forceinline__ int bit_width(uint32_t x) { return 32 - __clz(x); }

// rank = key << position_bits | (last - position), where key is the score's: distinct for all candidates of a row, more
// for the better one, 0 for what is none.
template <class Format>
struct Order {
  uint32_t last;
  int position_bits;

  __device__ explicit Order(int length) : last(length - 1), position_bits(bit_width(length - 1)) {}

  __device__ __forceinline__ int bits() const { return Format::kKeyBits + position_bits; }

  __device__ __forceinline__ uint64_t rank(uint32_t value, uint32_t position) const {
    uint32_t const key = ordered(value) >> (32 - Format::kKeyBits);
    return key == 0 ? 0 : uint64_t(key) << position_bits | (last - position);
  }
  // The least rank of any candidate is not below it.
  __device__ __forceinline__ uint64_t least() const { return uint64_t(1) << position_bits; }
  // That of any with a score above `threshold` neither.
  __device__ __forceinline__ uint64_t least(float threshold) const {
    return uint64_t(key_of(__float_as_uint(threshold)) >> (32 - Format::kKeyBits)) << position_bits;
  }

  __device__ __forceinline__ uint32_t position(uint64_t rank) const {
    return last - (uint32_t(rank) & uint32_t(least() - 1));
  }
};

}  // namespace dsa::topk
