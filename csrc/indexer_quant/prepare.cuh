// All that lies between the indexer's projections and its logits, in one pass over q and k: a vector (a query head, or
// the token's key) is 16 lanes, eight dimensions each.
//
//   lanes            0 1 2 3 | 4 5 6 7 | 8 .. 15
//   dimensions       0 .. 31 | 32 .. 63| 64 .. 127, without RoPE
//   half-split RoPE  lane l and lane l ^ 4 hold the pairs (i, i + 32); interleaved pairs lie within a lane
//
// A token's vectors are neighbours, its key the last, so that cos and sin come from the L1 cache but once. Per vector
// 256 bytes are read and 132 written, for which about as long is spent issuing (half of it the rotation) as moving
// them.
#pragma once

#include <cuda_runtime.h>

#include "op.h"
#include "vector.cuh"

namespace dsa::indexer_quant {

constexpr int kPrepareLanes = PrepareIndexerParams::kHeadDim / kValues;
// Few enough that the vectors of one token spread over several multiprocessors.
constexpr int kPrepareThreads = 128;
constexpr int kPrepareVectors = kPrepareThreads / kPrepareLanes;
constexpr int kRopeLanes = PrepareIndexerParams::kRope / kValues;
constexpr int kPairDistance = kRopeLanes / 2;
static_assert(kPrepareLanes == 16, "vector.cuh: rotate");

// Pairs (i, i + 32). `cos` and `sin` are the token's; `raw` are the values as bf16.
__device__ __forceinline__ void rope_half(float (&x)[kValues], uint4 const& raw, float const* cos, float const* sin,
                                          int lane) {
  uint4 other_raw;
  other_raw.x = __shfl_xor_sync(~0u, raw.x, kPairDistance);
  other_raw.y = __shfl_xor_sync(~0u, raw.y, kPairDistance);
  other_raw.z = __shfl_xor_sync(~0u, raw.z, kPairDistance);
  other_raw.w = __shfl_xor_sync(~0u, raw.w, kPairDistance);
  if (lane >= kRopeLanes) return;
  float other[kValues], c[kValues], s[kValues];
  widen_bf16(other, other_raw);
  load(c, cos + lane % kPairDistance * kValues);
  load(s, sin + lane % kPairDistance * kValues);
  float const sign = lane < kPairDistance ? -1.f : 1.f;
#pragma unroll
  for (int i = 0; i < kValues; ++i) x[i] = __fadd_rn(__fmul_rn(x[i], c[i]), __fmul_rn(other[i], s[i] * sign));
}

// Pairs (2i, 2i + 1).
__device__ __forceinline__ void rope_interleaved(float (&x)[kValues], float const* cos, float const* sin, int lane) {
  if (lane >= kRopeLanes) return;
  float4 const c4 = __ldg(reinterpret_cast<float4 const*>(cos) + lane);
  float4 const s4 = __ldg(reinterpret_cast<float4 const*>(sin) + lane);
  float const c[] = {c4.x, c4.y, c4.z, c4.w}, s[] = {s4.x, s4.y, s4.z, s4.w};
#pragma unroll
  for (int i = 0; i < kValues / 2; ++i) {
    float const a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = __fsub_rn(__fmul_rn(a, c[i]), __fmul_rn(b, s[i]));
    x[2 * i + 1] = __fadd_rn(__fmul_rn(b, c[i]), __fmul_rn(a, s[i]));
  }
}

__device__ __forceinline__ float load_weight(PrepareIndexerParams const& p, int64_t at) {
  if (p.weights_are_bf16) return __bfloat162float(static_cast<__nv_bfloat16 const*>(p.weights)[at]);
  return static_cast<float const*>(p.weights)[at];
}

__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(__grid_constant__ PrepareIndexerParams const p) {
  unsigned const vectors = unsigned(p.tokens) * unsigned(p.heads + 1);
  unsigned const vector = blockIdx.x * kPrepareVectors + threadIdx.x / kPrepareLanes;
  int const lane = threadIdx.x % kPrepareLanes;
  bool const exists = vector < vectors;  // its lanes stay for the shuffles of their neighbours
  unsigned const token = exists ? vector / unsigned(p.heads + 1) : 0;
  int const head = exists ? int(vector - token * unsigned(p.heads + 1)) : 0;
  bool const is_key = head == p.heads;

  auto const* const q = static_cast<__nv_bfloat16 const*>(p.q);
  auto const* const k = static_cast<__nv_bfloat16 const*>(p.k);
  auto const* const row = is_key ? k + token * p.k_stride_token : q + token * p.q_stride_token + head * p.q_stride_head;
  uint4 const raw = __ldg(reinterpret_cast<uint4 const*>(row) + lane);
  // Early: it is needed late, by one lane.
  bool const has_weight = exists && lane == 0 && !is_key;
  float const weight = has_weight ? load_weight(p, token * p.weights_stride_token + head) : 0.f;

  float x[kValues];
  widen_bf16(x, raw);
  float const *const cos = p.cos + token * p.cos_stride_token, *const sin = p.sin + token * p.sin_stride_token;
  if (p.interleaved)
    rope_interleaved(x, cos, sin, lane);
  else
    rope_half(x, raw, cos, sin, lane);
  if (p.hadamard) rotate(x, lane);
  float const scale = scale_of(amax_of_finite<kPrepareLanes>(x), p.ue8m0);
  uint2 const codes = encode(x, scale, p.ue8m0);
  if (!exists) return;

  int64_t const query = int64_t(token) * p.heads + head;
  auto* const out = static_cast<uint2*>(is_key ? p.k_codes : p.q_codes);
  out[(is_key ? int64_t(token) : query) * kPrepareLanes + lane] = codes;
  if (has_weight)
    p.weights_folded[query] = __fmul_rn(__fmul_rn(weight, p.weight_factor), scale);
  else if (lane == 0)
    p.k_scale[token] = scale;
}

}  // namespace dsa::indexer_quant
