// End of a tile: the two consumers add up their row sums, and each writes its half of the value columns.
#pragma once

#include "config.h"
#include "softmax.cuh"

namespace dsa::sm90::prefill_heads64 {

// Four lanes hold four rows of a 4 x 4 matrix of words; afterwards each holds a column of it.
__device__ __forceinline__ void transpose_quad(uint32_t (&v)[4], int lane) {
  auto exchange = [](bool upper, int distance, uint32_t& a, uint32_t& b) {  // a of the upper lane with b of the lower
    uint32_t const got = __shfl_xor_sync(~0u, upper ? a : b, distance);
    a = upper ? got : a;
    b = upper ? b : got;
  };
  bool const odd = lane & 1, high = lane & 2;
  exchange(odd, 1, v[0], v[1]);
  exchange(odd, 1, v[2], v[3]);
  exchange(high, 2, v[0], v[2]);
  exchange(high, 2, v[1], v[3]);
}

// Waits for the other consumer's sums; afterwards stats.sum and stats.top are the rows' own.
template <class Shared>
__device__ __forceinline__ void combine_stats(RowStats& stats, Shared& smem, int me, int lane, int warp) {
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    CUTE_UNROLL
    for (int mask = 1; mask <= 2; mask *= 2) {
      stats.sum[r] += __shfl_xor_sync(~0u, stats.sum[r], mask);
      stats.top[r] = fmaxf(stats.top[r], __shfl_xor_sync(~0u, stats.top[r], mask));
    }
    int const row = warp * 16 + r * 8 + lane / 4;
    if (lane % 4 == 0) {
      smem.sum[me][row] = stats.sum[r];
      smem.top[me][row] = stats.top[r];
    }
  }
  cutlass::arch::NamedBarrier::arrive_and_wait(256, kStatsReady);
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    int const row = warp * 16 + r * 8 + lane / 4;
    stats.sum[r] += smem.sum[me ^ 1][row];
    stats.top[r] = fmaxf(stats.top[r], smem.top[me ^ 1][row]);
  }
}

template <class TensorO>
__device__ __forceinline__ void write_tile(KernelParams const& params, Tile const tile, RowStats const& stats,
                                           TensorO const& rO, int me, int lane, int warp) {
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    int const head = tile.head + warp * 16 + r * 8 + lane / 4;
    bool const inside = head < params.h_q;
    float const sink = params.attn_sink != nullptr && inside ? params.attn_sink[head] : negative_infinity();
    float const scale = output_scale(stats.sum[r], stats.reference[r], sink);
    bf16* const out = static_cast<bf16*>(params.out) + tile.batch * params.out_stride_batch +
                      tile.token * params.out_stride_token + head * params.out_stride_head + me * kHalfV;
    // 32 columns at a time: four lanes' pairs of columns 8 k + 2 l become 16 bytes of columns 8 l for each lane.
    CUTE_UNROLL
    for (int i = 0; i < kHalfV / 32; ++i) {
      uint32_t v[4];
      CUTE_UNROLL
      for (int k = 0; k < 4; ++k) {
        int const e = (i * 4 + k) * 4 + r * 2;
        v[k] = pack_bf16(rO(e) * scale, rO(e + 1) * scale);
      }
      transpose_quad(v, lane);
      if (inside) *reinterpret_cast<uint4*>(out + i * 32 + lane % 4 * 8) = make_uint4(v[0], v[1], v[2], v[3]);
    }
    if (me == kOdd && inside && lane % 4 == 0) {
      int64_t const row = (int64_t(tile.batch) * params.s_q + tile.token) * params.h_q + head;
      params.max_logits[row] = stats.top[r] * params.scale;
      params.lse[row] = natural_lse(stats.sum[r], stats.reference[r]);
    }
  }
}

}  // namespace dsa::sm90::prefill_heads64
