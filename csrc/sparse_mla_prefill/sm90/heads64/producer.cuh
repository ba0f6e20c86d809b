// The producer warpgroup: gathers the rows that idx names into the two key buffers.
#pragma once

#include "arch/sm90/gather.cuh"
#include "attention/sm90/heads64/config.h"
#include "sparse_mla_prefill/sm90/index_stream.cuh"

namespace dsa::sm90::prefill_heads64 {

using heads64::kHalfTiles, heads64::kLeft, heads64::kRight;
// 128 threads' copies, and with the left half 4 warps' parts of the valid bits.
template <int kDQk>
using Config = heads64::Config<kDQk, 128 + 4, 128, 256, false>;

template <class Config>
struct Producer {
  using Shared = typename Config::SharedStorage;

  // Eight lanes copy one row, 128 bytes a step. A warp fills rows 16 w .. 16 w + 15 of a block, four at a time, so
  // that lane l < 16 can hold the index of row 16 w + l.
  static constexpr int kRowsPerWarp = kBlockK / 4;
  static constexpr int kRowSteps = kRowsPerWarp / 4;

  KernelParams const& params;
  Shared& smem;
  int const warp, lane;
  uint32_t phase = 1;  // of the empty barriers: both buffers start out free

  __device__ __forceinline__ Producer(KernelParams const& params, Shared& smem)
      : params(params), smem(smem), warp(threadIdx.x / 32 % 4), lane(threadIdx.x % 32) {}

  __device__ __forceinline__ void run() {
    int const place = warp * kRowsPerWarp + lane % kRowsPerWarp;  // of this lane's index in a block
    for_each_pair(params, place, [&](__nv_bfloat16 const* kv, int first, int second) {
      gather_block(kv, first, 0);
      gather_block(kv, second, 1);
      phase ^= 1;
    });
  }

 private:
  __device__ __forceinline__ void gather_block(__nv_bfloat16 const* kv, int index, int buffer) {
    bool const valid = uint32_t(index) < uint32_t(params.s_kv);
    uint32_t const valid_rows = __ballot_sync(~0u, valid) & 0xffff;
    int64_t const offset = valid ? index * params.kv_stride_token : 0;
    __nv_bfloat16 const* rows[kRowSteps];
    CUTE_UNROLL
    for (int step = 0; step < kRowSteps; ++step)
      rows[step] = kv + __shfl_sync(~0u, offset, step * 4 + lane / 8) + lane % 8 * 8;

    smem.empty[buffer][kLeft].wait(phase);
    if (lane == 0) {
      reinterpret_cast<uint16_t*>(&smem.valid[buffer])[warp] = valid_rows;
      smem.full[buffer][kLeft].arrive();
    }
    copy_tiles<0, kHalfTiles>(rows, valid_rows, buffer);
    arrive_after_gather(reinterpret_cast<uint64_t&>(smem.full[buffer][kLeft]));

    smem.empty[buffer][kRight].wait(phase);
    copy_tiles<kHalfTiles, Config::kTiles>(rows, valid_rows, buffer);
    arrive_after_gather(reinterpret_cast<uint64_t&>(smem.full[buffer][kRight]));
  }

  template <int kFirst, int kLast>
  __device__ __forceinline__ void copy_tiles(__nv_bfloat16 const* const (&rows)[kRowSteps], uint32_t valid_rows,
                                             int buffer) {
    uint32_t const base = cast_smem_ptr_to_uint(smem.k[buffer]);
    CUTE_UNROLL
    for (int step = 0; step < kRowSteps; ++step) {
      int const row_in_warp = step * 4 + lane / 8, row = warp * kRowsPerWarp + row_in_warp;
      uint32_t const dst = base + row * 128 + ((lane % 8) ^ (row % 8)) * 16;  // 128-byte swizzle
      bool const valid = valid_rows >> row_in_warp & 1;
      CUTE_UNROLL
      for (int t = kFirst; t < kLast; ++t)
        gather_16B(dst + t * kTileElements * sizeof(bf16), rows[step] + t * kTileCols, valid);
    }
  }
};

}  // namespace dsa::sm90::prefill_heads64
