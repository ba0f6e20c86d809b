// Online softmax of one thread: one row (head), half of a block's keys. The row's other half is the thread's whose
// number differs in bit 6; the two keep equal references.
#pragma once

#include "attention/softmax_math.cuh"
#include "tiles.h"

namespace dsa::sm100 {

constexpr int kThreadKeys = kBlockK / 2;

struct RowStats {
  float reference = -INFINITY;  // base 2, relative to which O and sum are kept
  float sum = 0.f;              // over this thread's keys alone
  float top = -INFINITY;        // largest raw score of the row

  // Meets the largest raw score of a block's row. Returns what O and the sums before it are to be multiplied by: 1,
  // unless the score exceeds the reference by more than the threshold.
  __device__ __forceinline__ float meet(float block_top, float scale_log2) {
    top = fmaxf(top, block_top);
    float const exponent = block_top * scale_log2;
    if (!(exponent > reference + kRescaleThreshold)) return 1.f;
    float const factor = exp2f(reference - exponent);
    reference = exponent;
    sum *= factor;
    return factor;
  }

  // Raw scores in, probabilities relative to the reference out, as bf16 pairs.
  __device__ __forceinline__ void exponentiate(float const (&scores)[kThreadKeys], uint32_t (&p)[kThreadKeys / 2],
                                               float scale_log2) {
    float const offset = exponent_offset(reference);
    CUTE_UNROLL
    for (int i = 0; i < kThreadKeys; i += 2) {
      float const lo = exp2_approx(fmaf(scores[i], scale_log2, -offset));
      float const hi = exp2_approx(fmaf(scores[i + 1], scale_log2, -offset));
      sum += lo + hi;
      p[i / 2] = pack_bf16(lo, hi);
    }
  }
};

// Scores of keys that do not count become -inf.
__device__ __forceinline__ void mask_scores(float (&scores)[kThreadKeys], uint32_t valid) {
  if (valid == ~0u) return;
  CUTE_UNROLL
  for (int i = 0; i < kThreadKeys; ++i)
    if (!(valid >> i & 1)) scores[i] = negative_infinity();
}

__device__ __forceinline__ float largest(float const (&scores)[kThreadKeys]) {
  float top[4] = {scores[0], scores[1], scores[2], scores[3]};
  CUTE_UNROLL
  for (int i = 4; i < kThreadKeys; ++i) top[i % 4] = fmaxf(top[i % 4], scores[i]);
  return fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3]));
}

}  // namespace dsa::sm100
