// Online softmax of one consumer thread: two rows (heads), 16 of a block's 64 keys each.
#pragma once

#include "attention/softmax_math.cuh"
#include "config.h"

namespace dsa::sm90::heads64 {

// An accumulator fragment's element i belongs to row i / 2 % 2 of the thread's two, in every wgmma accumulator.
CUTE_HOST_DEVICE constexpr int fragment_row(int i) { return i / 2 % 2; }

struct RowStats {
  float reference[2] = {-INFINITY, -INFINITY};  // base 2, relative to which both consumers' O and sums are kept
  float sum[2] = {0.f, 0.f};                    // over this thread's keys alone
  float top[2] = {-INFINITY, -INFINITY};        // largest raw score of this thread's keys

  // Takes over the references that the other consumer has moved to. True if the warp must rescale O by `factor`.
  __device__ __forceinline__ bool adopt(float const* references, float (&factor)[2], int lane, int warp) {
    float theirs[2];
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) theirs[r] = references[warp * 16 + r * 8 + lane / 4];
    bool const moved = theirs[0] != reference[0] || theirs[1] != reference[1];
    if (!__any_sync(~0u, moved)) return false;
    move_to(theirs, factor);
    return true;
  }

  __device__ __forceinline__ void publish(float* references, int lane, int warp) const {
    if (lane % 4 == 0) {
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r) references[warp * 16 + r * 8 + lane / 4] = reference[r];
    }
  }

  // Meets a block's raw scores. True if the warp must rescale O by `factor` before it adds the block: some row's
  // scores exceed its reference by more than the threshold. Rows decide for themselves, so that a head's bits do not
  // depend on the heads beside it.
  template <class TensorS>
  __device__ __forceinline__ bool meet(TensorS const& rS, float scale_log2, float (&factor)[2]) {
    float block_top[2] = {-INFINITY, -INFINITY};
    CUTE_UNROLL
    for (int i = 0; i < size(rS); ++i) block_top[fragment_row(i)] = fmaxf(block_top[fragment_row(i)], rS(i));
    bool exceeds = false;
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      top[r] = fmaxf(top[r], block_top[r]);
      exceeds |= block_top[r] * scale_log2 > reference[r] + kRescaleThreshold;
    }
    if (!__any_sync(~0u, exceeds)) return false;
    float target[2];
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float row_top = fmaxf(block_top[r], __shfl_xor_sync(~0u, block_top[r], 1));
      row_top = fmaxf(row_top, __shfl_xor_sync(~0u, row_top, 2)) * scale_log2;
      target[r] = row_top > reference[r] + kRescaleThreshold ? row_top : reference[r];
    }
    move_to(target, factor);
    return true;
  }

  // rS: raw scores in, probabilities relative to the references out, as bf16 pairs in rP.
  template <class TensorS, class TensorP>
  __device__ __forceinline__ void exponentiate(TensorS& rS, TensorP& rP, float scale_log2) {
    float const offset[2] = {exponent_offset(reference[0]), exponent_offset(reference[1])};
    auto packed = recast<uint32_t>(rP);
    CUTE_UNROLL
    for (int i = 0; i < size(rS); i += 2) {
      int const r = fragment_row(i);
      float const lo = exp2_approx(fmaf(rS(i), scale_log2, -offset[r]));
      float const hi = exp2_approx(fmaf(rS(i + 1), scale_log2, -offset[r]));
      sum[r] += lo + hi;
      packed(i / 2) = pack_bf16(lo, hi);
    }
  }

 private:
  __device__ __forceinline__ void move_to(float const (&target)[2], float (&factor)[2]) {
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      factor[r] = target[r] == reference[r] ? 1.f : exp2f(reference[r] - target[r]);
      reference[r] = target[r];
      sum[r] *= factor[r];
    }
  }
};

// O moves to new references; a factor of 1 leaves its row alone.
template <class TensorO>
__device__ __forceinline__ void rescale(TensorO& rO, float const (&factor)[2]) {
  CUTE_UNROLL
  for (int i = 0; i < size(rO); ++i) rO(i) *= factor[fragment_row(i)];
}

// Scores of keys that do not count become -inf.
template <class TensorS>
__device__ __forceinline__ void mask_scores(TensorS& rS, uint64_t valid, int lane) {
  if (valid == ~uint64_t(0)) return;
  uint64_t const own = valid >> lane % 4 * 2;
  CUTE_UNROLL
  for (int i = 0; i < size(rS); ++i)
    if (!(own >> (i / 4 * 8 + i % 2) & 1)) rS(i) = negative_infinity();
}

}  // namespace dsa::sm90::heads64
