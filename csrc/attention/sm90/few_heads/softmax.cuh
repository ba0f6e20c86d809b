// Online softmax of one consumer thread: two keys (rows) of a block and kHeads / 4 heads (columns).
#pragma once

#include "attention/softmax_math.cuh"
#include "config.h"

namespace dsa::sm90::few_heads {

// Element i of a wgmma accumulator: of the thread's two rows and of its columns lane % 4 * 2 + {0, 1} + 8 {0, 1, ...}.
CUTE_HOST_DEVICE constexpr int fragment_row(int i) { return i / 2 % 2; }
CUTE_HOST_DEVICE constexpr int fragment_head(int i) { return i / 4 * 2 + i % 2; }

template <int kHeads>
struct HeadStats {
  static constexpr int kMine = kHeads / 4;
  float reference[kMine];  // base 2, relative to which O and sums are kept; the same in all the warpgroup's threads
  float sum[kMine];        // of probabilities, over this thread's keys alone
  float weight[kMine];  // of probabilities as they are multiplied with the values, in bf16: what outputs are divided by
  float top[kMine];     // largest raw score of this thread's keys

  __device__ __forceinline__ void reset() {
    CUTE_UNROLL
    for (int h = 0; h < kMine; ++h) {
      reference[h] = top[h] = negative_infinity();
      sum[h] = weight[h] = 0.f;
    }
  }

  // Whether any score exceeds its head's reference by more than the threshold.
  template <class TensorS>
  __device__ __forceinline__ bool exceeds(TensorS const& rS, float scale_log2) const {
    bool result = false;
    CUTE_UNROLL
    for (int i = 0; i < size(rS); ++i) result |= rS(i) * scale_log2 > reference[fragment_head(i)] + kRescaleThreshold;
    return result;
  }

  // Moves the references of heads that a block exceeds to its largest scores, block_top. Heads decide for themselves,
  // so that a head's bits do not depend on the others.
  __device__ __forceinline__ void move(float const (&block_top)[kMine], float scale_log2, float (&factor)[kMine]) {
    CUTE_UNROLL
    for (int h = 0; h < kMine; ++h) {
      float const row_top = block_top[h] * scale_log2;
      bool const moves = row_top > reference[h] + kRescaleThreshold;
      factor[h] = moves ? exp2f(reference[h] - row_top) : 1.f;
      reference[h] = moves ? row_top : reference[h];
      sum[h] *= factor[h];
      weight[h] *= factor[h];
    }
  }

  // Probabilities relative to the references, and as bf16 pairs of heads.
  template <class TensorS, class TensorP>
  __device__ __forceinline__ void exponentiate(TensorS const& rS, TensorS& rP, TensorP& packed,
                                               float scale_log2) const {
    CUTE_UNROLL
    for (int i = 0; i < size(rS); ++i)
      rP(i) = exp2_approx(fmaf(rS(i), scale_log2, -exponent_offset(reference[fragment_head(i)])));
    CUTE_UNROLL
    for (int i = 0; i < size(rS); i += 2) packed(i / 2) = pack_bf16(rP(i), rP(i + 1));
  }

  // Adds a block to sums and maxima.
  template <class TensorS, class TensorP>
  __device__ __forceinline__ void add(TensorS const& rS, TensorS const& rP, TensorP const& packed) {
    CUTE_UNROLL
    for (int i = 0; i < size(rS); ++i) {
      int const h = fragment_head(i);
      sum[h] += rP(i);
      weight[h] += __uint_as_float(i % 2 == 0 ? packed(i / 2) << 16 : packed(i / 2) & 0xffff0000);
      top[h] = fmaxf(top[h], rS(i));
    }
  }
};

// Over the eight threads of a warp that have the same heads.
template <int kMine, class Op>
__device__ __forceinline__ void reduce_over_keys(float (&x)[kMine], Op op) {
  CUTE_UNROLL
  for (int h = 0; h < kMine; ++h) {
    CUTE_UNROLL
    for (int mask = 4; mask <= 16; mask *= 2) x[h] = op(x[h], __shfl_xor_sync(~0u, x[h], mask));
  }
}

// A thread's kMine values to or from an array over heads.
template <int kMine>
__device__ __forceinline__ void put_heads(float* array, float const (&x)[kMine], int lane) {
  CUTE_UNROLL
  for (int h = 0; h < kMine; ++h) array[h / 2 * 8 + lane % 4 * 2 + h % 2] = x[h];
}
template <int kMine>
__device__ __forceinline__ void get_heads(float const* array, float (&x)[kMine], int lane) {
  CUTE_UNROLL
  for (int h = 0; h < kMine; ++h) x[h] = array[h / 2 * 8 + lane % 4 * 2 + h % 2];
}

// Scores of keys that do not count become -inf.
template <class TensorS>
__device__ __forceinline__ void mask_scores(TensorS& rS, uint64_t valid, int lane, int warp) {
  if (valid == ~uint64_t(0)) return;
  CUTE_UNROLL
  for (int i = 0; i < size(rS); ++i)
    if (!(valid >> (warp * 16 + fragment_row(i) * 8 + lane / 4) & 1)) rS(i) = negative_infinity();
}

// Two 8 x 8 matrices of bf16, as a warp's accumulators hold them, transposed: `address` of their l-th row is lane l's.
__device__ __forceinline__ void store_matrices_transposed(uint32_t address, uint32_t first, uint32_t second) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(first), "r"(second)
               : "memory");
}

// Writes a warp's 16 rows of an accumulator [64, heads], as bf16 pairs of heads, transposed to a swizzled tile
// [heads, 64].
template <class TensorPacked>
__device__ __forceinline__ void store_transposed(TensorPacked const& packed, bf16* tile, int lane, int warp) {
  CUTE_UNROLL
  for (int g = 0; g < size(packed) / 2; ++g) {
    int const head = g * 8 + lane % 8;
    uint32_t const address = cast_smem_ptr_to_uint(tile) + head * 128 + ((warp * 2 + lane / 8 % 2) ^ (lane % 8)) * 16;
    store_matrices_transposed(address, packed(g * 2), packed(g * 2 + 1));
  }
}

}  // namespace dsa::sm90::few_heads
