// The softmax warps of a CTA, which also write the output.
#pragma once

#include "attention/sm100/softmax_warps.cuh"
#include "work.h"

namespace dsa::sm100 {

template <class Config>
struct Softmax : SoftmaxWarps<typename Config::SharedStorage> {
  using Warps = SoftmaxWarps<typename Config::SharedStorage>;
  using Warps::half, Warps::lane, Warps::stats, Warps::warp;

  KernelParams const& params;
  int const cta_head;  // of a tile's heads, the CTA's first

  __device__ __forceinline__ Softmax(KernelParams const& params, typename Config::SharedStorage& smem, uint32_t rank)
      : Warps(smem, params.scale), params(params), cta_head(int(rank) * kBlockH) {}

  __device__ __forceinline__ void run() {
    for (uint64_t i = blockIdx.x / Config::kCtas; i < params.tiles; i += gridDim.x / Config::kCtas) {
      Tile const tile = params.tile(uint32_t(i));
      TileKeys const keys(params, tile);
      int const blocks = keys.blocks();
      stats = RowStats{};
      int next = keys.row(half * kThreadKeys + lane);
#pragma unroll 1
      for (int n = 0; n < blocks; ++n) {
        uint32_t const valid = __ballot_sync(~0u, next >= 0);
        next = keys.row(uint32_t(n + 1) * kBlockK + half * kThreadKeys + lane);
        this->one_block(valid, n == 0);
      }
      finish(tile);
    }
  }

 private:
  __device__ __forceinline__ void finish(Tile const& tile) {
    float const sum = this->row_sum();
    int const first = tile.head + cta_head + warp % 2 * 32;  // of the warp's heads
    int const head = first + lane;
    bool const exists = head < params.h_q;
    float const sink = params.attn_sink != nullptr && exists ? params.attn_sink[head] : negative_infinity();
    if (exists && half == 0) {
      int64_t const place = (int64_t(tile.batch) * params.s_q + tile.token) * params.h_q + head;
      params.max_logits[place] = stats.top * params.scale;
      params.lse[place] = natural_lse(sum, stats.reference);
    }
    bf16* const out = static_cast<bf16*>(params.out) + tile.batch * params.out_stride_batch +
                      tile.token * params.out_stride_token + first * params.out_stride_head;
    this->wait_output();
    write_output<Config::kValueRun>(this->tmem + kTmemO, output_scale(sum, stats.reference, sink), out,
                                    params.out_stride_head, params.h_q - first, half, lane);
  }
};

}  // namespace dsa::sm100
