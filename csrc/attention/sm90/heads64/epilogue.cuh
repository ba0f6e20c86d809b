// End of a tile: the two consumers add up their row sums, and each writes its half of the value columns.
#pragma once

#include <cute/arch/copy_sm90_tma.hpp>

#include "config.h"
#include "softmax.cuh"
#include "store_rows.cuh"

namespace dsa::sm90::heads64 {

// Waits for the other consumer's sums; afterwards stats.sum and stats.top are the rows' own.
template <class Shared>
__device__ __forceinline__ void combine_stats(RowStats& stats, Shared& smem, int me, int lane, int warp) {
  CUTE_UNROLL
  for (int mask = 1; mask <= 2; mask *= 2) {
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      stats.sum[r] += __shfl_xor_sync(~0u, stats.sum[r], mask);
      stats.top[r] = fmaxf(stats.top[r], __shfl_xor_sync(~0u, stats.top[r], mask));
    }
  }
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    int const row = warp * 16 + r * 8 + lane / 4;
    if (lane % 4 == 0) {
      smem.sum[me][row] = stats.sum[r];
      smem.top[me][row] = stats.top[r];
    }
  }
  cutlass::arch::NamedBarrier::arrive(256, kStatsReady + me);
  cutlass::arch::NamedBarrier::arrive_and_wait(256, kStatsReady + (me ^ 1));
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    int const row = warp * 16 + r * 8 + lane / 4;
    stats.sum[r] += smem.sum[me ^ 1][row];
    stats.top[r] = fmaxf(stats.top[r], smem.top[me ^ 1][row]);
  }
}

// Starts to write a warp's 16 heads of this consumer's value columns. They go through the odd key buffer, which the
// last values have left and this consumer has not yet released: stores from registers would queue behind the next
// tile's gather. All warps have met in combine_stats, so none still multiplies from that buffer.
template <class Shared, class Tile, class TensorO>
__device__ __forceinline__ void write_whole(CUtensorMap const& out_map, Tile const& tile, float const (&scale)[2],
                                            TensorO const& rO, Shared& smem, int me, int lane, int warp) {
  bf16* const staged = smem.k[1] + me * kHalfTiles * kTileElements;
  CUTE_UNROLL
  for (int t = 0; t < kHalfTiles; ++t) {
    auto packed = make_tensor<uint32_t>(Int<kTileCols / 4>{});
    CUTE_UNROLL
    for (int i = 0; i < size(packed); ++i) {
      int const e = t * kTileCols / 2 + i * 2;
      packed(i) = pack_bf16(rO(e) * scale[i % 2], rO(e + 1) * scale[i % 2]);
    }
    store_rows(packed, staged + t * kTileElements, lane, warp);
  }
  cutlass::arch::fence_view_async_shared();
  __syncwarp();
  if (lane == 0) {
    CUTE_UNROLL
    for (int t = 0; t < kHalfTiles; ++t)  // heads past the last are not written
      SM90_TMA_STORE_4D::copy(&out_map, staged + t * kTileElements + warp * 16 * kTileCols, me * kHalfV + t * kTileCols,
                              tile.head + warp * 16, tile.token, tile.batch);
    tma_store_arrive();
  }
}

// A part of a query: fp32, for a kernel that adds up the parts.
template <class TensorO>
__device__ __forceinline__ void write_part(float* const (&rows)[2], float const (&scale)[2], TensorO const& rO, int me,
                                           int lane) {
  CUTE_UNROLL
  for (int i = 0; i < size(rO); i += 2) {
    int const r = fragment_row(i), column = me * kHalfV + i / 4 * 8 + lane % 4 * 2;
    *reinterpret_cast<float2*>(rows[r] + column) = make_float2(rO(i) * scale[r], rO(i + 1) * scale[r]);
  }
}

template <class Work, class Shared, class Tile, class TensorO>
__device__ __forceinline__ void write_tile(typename Work::Params const& params, CUtensorMap const& out_map,
                                           Tile const& tile, RowStats const& stats, TensorO const& rO, Shared& smem,
                                           int me, int lane, int warp) {
  float scale[2];
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    int const head = tile.head + warp * 16 + r * 8 + lane / 4;
    scale[r] = Work::output_scale(params, tile, head, stats.sum[r], stats.reference[r]);
    if (me == kOdd && head < params.h_q && lane % 4 == 0)
      Work::write_stats(params, tile, head, stats.sum[r], stats.reference[r], stats.top[r]);
  }
  if (Work::is_whole(tile)) {
    write_whole(out_map, tile, scale, rO, smem, me, lane, warp);
  } else {
    int const row = warp * 16 + lane / 4;
    write_part({Work::partial(params, tile, row), Work::partial(params, tile, row + 8)}, scale, rO, me, lane);
  }
}

}  // namespace dsa::sm90::heads64
