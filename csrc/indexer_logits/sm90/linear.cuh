// The linear half of the sum over heads.
//
//   sum_h w[h] relu(k . q[h])  =  sum_h w[h]/2 |k . q[h]|  +  k . l,    l = sum_h w[h]/2 q[h]
//
// since relu(x) is (x + |x|) / 2. An element of a product then takes one multiply-add (absolute values are free) and no
// addition; for that a product has 8 columns more, or 16: l of each query, as four e4m3 numbers of 4 bits each. Next to
// sum_h |w[h]| |k| . |q[h]|, a logit is off by as little as before; but where relu leaves exactly 0, that much remains.
//
// Weights, and with them sums, are in units of a power of two, each query's own, in which the largest of l is from 128
// to 256: in reach of e4m3, and nothing overflows that is finite in the end.
#pragma once

#include <cuda_fp8.h>

#include "config.h"

namespace dsa::sm90::indexer_logits {

// Of a slab, once Q and weights are there. A warp's item is 4 kWords dimensions of a query, of which a lane adds up 4:
// over all heads if that is as many words as there are lanes, else over its group's rows of every eight.
template <class Config, int kWords>
struct LinearHalf {
  static constexpr int kHeads = Config::kHeads, kDim = Config::kDim, kPieces = Config::kPieces;
  static constexpr int kItemsOfQuery = kDim / (4 * kWords), kItems = Config::kTokens * kItemsOfQuery;
  static constexpr int kGroups = 32 / kWords, kRows = 8 / kGroups;  // of every eight
  static constexpr int kMine = 4 / kGroups;                         // dimensions that a lane ends with
  static_assert(kDim == 128, "rows as wide as the swizzle");
  static_assert(kItems <= Config::kLinearItems);

  typename Config::SharedStorage& smem;
  uint8_t* const q;  // all slabs
  int const lane, slab, item;
  int const token = item / kItemsOfQuery, group = lane / kWords;
  int const dim = item % kItemsOfQuery * 4 * kWords + lane % kWords * 4;
  int exponent;  // of the unit, biased
  float l[4];    // in front those that this lane ends with

  // Also says how large they are; until all of a query's items have, nothing can be written.
  __device__ __forceinline__ void add() {
    float const* const weight = smem.weight[slab] + token * kHeads;
    exponent = exponent_of_unit(weight);
    CUTE_UNROLL
    for (float& sum : l) sum = 0;
    add(weight + group * kRows, 0.5f * power_of_two(127 - exponent), token * kHeads + group * kRows);
    exchange();
    uint32_t most = 0;
    CUTE_UNROLL
    for (int i = 0; i < kMine; ++i) most = max(most, magnitude(l[i]));
    most = __reduce_max_sync(~0u, most);
    if (lane == 0) smem.most[slab][item] = most;
  }

  __device__ __forceinline__ void write() {
    uint32_t most = 0;
    CUTE_UNROLL
    for (int i = 0; i < kItemsOfQuery; ++i) most = max(most, smem.most[slab][token * kItemsOfQuery + i]);
    // (Where all but nothing is left of the sums, weights in such a unit are still far from overflow.)
    int const better = min(max(exponent + max(int(most >> 23) - 134, -40), 1), 252);
    if (lane == 0) smem.unit_weight[slab][token] = power_of_two(better - 127);
    write_pieces(power_of_two(exponent - better));
  }

 private:
  // In bytes: 16 of them go where the swizzle has them.
  __device__ __forceinline__ uint8_t* at(int row, int dim) const {
    return q + (slab * Config::kRows + row) * kDim + (dim ^ row % 8 * 16);
  }
  static __device__ __forceinline__ uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

  // A sixteenth of the largest of the query's weights, or less; subnormal weights count as the least normal one.
  __device__ __forceinline__ int exponent_of_unit(float const* weight) const {
    uint32_t most = 0;
    CUTE_UNROLL
    for (int h = lane; h < kHeads; h += 32) most = max(most, magnitude(weight[h]));
    return max(int(__reduce_max_sync(~0u, most) >> 23) - 3, 1);
  }

  __device__ __forceinline__ void add(float const* weight, float factor, int first_row) {
    uint8_t const* rows[kRows];
    CUTE_UNROLL
    for (int r = 0; r < kRows; ++r) rows[r] = at(first_row + r, dim);
#pragma unroll(kRows < 8 ? 2 : 1)
    for (int h = 0; h < kHeads; h += 8) {
      CUTE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        float const w = factor * weight[h + r];
        uint32_t const codes = *reinterpret_cast<uint32_t const*>(rows[r] + h * kDim);
        CUTE_UNROLL
        for (int i = 0; i < 4; i += 2) {
          float2 const x = decode(codes >> 8 * i);
          l[i] = fmaf(x.x, w, l[i]);
          l[i + 1] = fmaf(x.y, w, l[i + 1]);
        }
      }
    }
  }

  // Each group ends with its own dimensions' sums, in front.
  __device__ __forceinline__ void exchange() {
    CUTE_UNROLL
    for (int left = 2, distance = 16; left >= kMine; left /= 2, distance /= 2) {
      bool const upper = lane & distance;
      CUTE_UNROLL
      for (int i = 0; i < left; ++i)
        l[i] = (upper ? l[left + i] : l[i]) + __shfl_xor_sync(~0u, upper ? l[i] : l[left + i], distance);
    }
  }

  // factor * l = sum over p of 16^-p piece[p], but for the little that is left then.
  __device__ __forceinline__ void write_pieces(float factor) {
    CUTE_UNROLL
    for (float& x : l) x *= factor;
    CUTE_UNROLL
    for (int p = 0; p < kPieces; ++p) {
      uint32_t codes = 0;
      CUTE_UNROLL
      for (int i = 0; i < kMine; i += 2) {
        uint32_t const pair = __nv_cvt_float2_to_fp8x2({l[i], kMine > 1 ? l[i + 1] : 0.f}, __NV_SATFINITE, __NV_E4M3);
        float2 const x = decode(pair);
        l[i] = (l[i] - x.x) * 16;
        if (kMine > 1) l[i + 1] = (l[i + 1] - x.y) * 16;
        codes |= pair << 8 * i;
      }
      uint8_t* const to = at(Config::row_of_piece(token, p), dim + group * kMine);
      if constexpr (kMine == 4)
        *reinterpret_cast<uint32_t*>(to) = codes;
      else if constexpr (kMine == 2)
        *reinterpret_cast<uint16_t*>(to) = uint16_t(codes);
      else
        *to = uint8_t(codes);
    }
  }

  static __device__ __forceinline__ float2 decode(uint32_t pair) {
    return __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t(pair), __NV_E4M3)));
  }
};

}  // namespace dsa::sm90::indexer_logits
