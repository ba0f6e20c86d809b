// The tiles of one stream, and where their results go.
#pragma once

#include "attention/softmax_math.cuh"
#include "sparse_mla_prefill/sm90/work.h"

namespace dsa::sm90 {

struct Work {
  using Params = KernelParams;
  static constexpr bool kTeam = false;

  KernelParams const& params;
  int64_t i;
  int64_t const step;

  // A CTA takes every gridDim.x-th tile; of two consumers that work on tiles of their own, each takes every second one.
  // Neighbouring CTAs take the head blocks of one query and so gather the same rows at the same time.
  __device__ __forceinline__ explicit Work(KernelParams const& params)
      : params(params), i(blockIdx.x), step(gridDim.x) {}
  __device__ __forceinline__ Work(KernelParams const& params, int consumer)
      : params(params), i(blockIdx.x + int64_t(consumer) * gridDim.x), step(2 * int64_t(gridDim.x)) {}

  __device__ __forceinline__ bool done() const { return i >= params.tiles; }
  __device__ __forceinline__ void advance() { i += step; }
  __device__ __forceinline__ Tile tile() const { return params.tile(uint32_t(i)); }
  __device__ __forceinline__ int blocks() const { return params.blocks(params.length(tile())); }
  __device__ __forceinline__ int pairs() const { return params.pairs(params.length(tile())); }

  static __device__ constexpr bool is_whole(Tile const&) { return true; }
  static __device__ __forceinline__ float* partial(KernelParams const&, Tile const&, int) { return nullptr; }
  static __device__ __forceinline__ float output_scale(KernelParams const& p, Tile const&, int head, float sum,
                                                       float reference) {
    float const sink = p.attn_sink != nullptr && head < p.h_q ? p.attn_sink[head] : negative_infinity();
    return dsa::output_scale(sum, reference, sink);
  }
  static __device__ __forceinline__ void write_stats(KernelParams const& p, Tile const& tile, int head, float sum,
                                                     float reference, float top) {
    int64_t const row = (int64_t(tile.batch) * p.s_q + tile.token) * p.h_q + head;
    p.max_logits[row] = top * p.scale;
    p.lse[row] = natural_lse(sum, reference);
  }
};

}  // namespace dsa::sm90
