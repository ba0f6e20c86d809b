// The softmax warps of a CTA, which also write the output, or a part's.
#pragma once

#include "arch/any/cluster.cuh"
#include "attention/sm100/softmax_warps.cuh"
#include "config.h"
#include "work.h"

namespace dsa::sm100::decode {

template <class Config>
struct Softmax : SoftmaxWarps<typename Config::SharedStorage> {
  using Warps = SoftmaxWarps<typename Config::SharedStorage>;
  using Warps::half, Warps::lane, Warps::stats, Warps::tmem, Warps::warp;

  DecodeParams const& params;

  __device__ __forceinline__ Softmax(DecodeParams const& params, typename Config::SharedStorage& smem)
      : Warps(smem, params.scale), params(params) {}

  __device__ __forceinline__ void run() {
    TileWalk walk(params, worker<Config>(), workers<Config>());
    for (DecodeTile tile; walk.next(tile);) {
      TileKeys const keys(params, tile);
      int const place = half * kThreadKeys + lane;
      stats = RowStats{};
      Key next = keys.key(0, place);
#pragma unroll 1
      for (int n = 0; n < tile.blocks; ++n) {
        uint32_t const valid = __ballot_sync(~0u, next.slot >= 0);
        next = keys.key(n + 1, place);
        this->one_block(valid, n == 0);
      }
      finish(tile);
    }
  }

 private:
  __device__ __forceinline__ void finish(DecodeTile const& tile) {
    float const sum = this->row_sum();
    uint32_t cta_head = Config::kPair ? cluster_rank() * kBlockH : 0;
    asm volatile("" : "+r"(cta_head));  // lest what follows from it is kept over all tiles: registers are scarce
    int const first = tile.head + int(cta_head) + warp % 2 * 32;  // of the warp's heads
    int const head = first + lane;
    bool const exists = head < params.h_q, whole = tile.is_whole();
    bool const sinks = params.attn_sink != nullptr && exists && whole;  // or combine.cu sees to it
    float const scale = output_scale(sum, stats.reference, sinks ? params.attn_sink[head] : negative_infinity());
    int64_t const query = int64_t(tile.batch) * params.s_q + tile.token;
    int64_t const part_row = int64_t(tile.slot) * params.shape.padded_heads();
    if (exists && half == 0) {
      if (whole)
        params.lse[query * params.h_q + head] = natural_lse(sum, stats.reference);
      else
        params.partial_lse[part_row + head] = sum == 0.f ? negative_infinity() : log2f(sum) + stats.reference;
    }
    this->wait_output();
    if (whole)
      write_output<Config::kValueRun>(tmem + kTmemO, scale,
                                      static_cast<bf16*>(params.out) + tile.batch * params.out_stride_batch +
                                          tile.token * params.out_stride_token + first * params.out_stride_head,
                                      params.out_stride_head, params.h_q - first, half, lane);
    else
      write_output<Config::kValueRun>(tmem + kTmemO, scale, params.partial_out + (part_row + first) * kDV, kDV,
                                      params.h_q - first, half, lane);
  }
};

}  // namespace dsa::sm100::decode
