// The producer warpgroup: gathers the rows that idx names into the ring of stages.
#pragma once

#include "arch/sm90/gather.cuh"
#include "config.h"

namespace dsa::sm90::prefill_few_heads {

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
  uint32_t block = 0;           // since the kernel's start
  uint32_t stage = 0, phase = 1;  // of the empty barriers: all stages start out free

  __device__ __forceinline__ Producer(KernelParams const& params, Shared& smem)
      : params(params), smem(smem), warp(threadIdx.x / 32 % 4), lane(threadIdx.x % 32) {}

  __device__ __forceinline__ void run() {
    for (int64_t i = blockIdx.x; i < params.tiles; i += gridDim.x) gather_tile(params.tile(i));
  }

 private:
  __device__ __forceinline__ void gather_tile(Tile const tile) {
    int const length = params.length(tile), blocks = 2 * params.pairs(length);
    int32_t const* const idx = params.idx + tile.batch * params.idx_stride_batch + tile.token * params.idx_stride_token;
    auto const* const kv = static_cast<bf16 const*>(params.kv) + tile.batch * params.kv_stride_batch;
    int const place = warp * kRowsPerWarp + lane % kRowsPerWarp;  // of this lane's index in a block
    auto load_index = [&](int b) {
      int const j = b * kBlockK + place;
      return j < length ? __ldg(idx + j) : -1;
    };
    int next = load_index(0);
#pragma unroll 1
    for (int b = 0; b < blocks; ++b) {
      int const index = next;
      next = load_index(b + 1);
      gather_block(kv, index);
    }
  }

  __device__ __forceinline__ void gather_block(bf16 const* kv, int index) {
    bool const valid = uint32_t(index) < uint32_t(params.s_kv);
    uint32_t const valid_rows = __ballot_sync(~0u, valid) & 0xffff;
    int64_t const offset = valid ? index * params.kv_stride_token : 0;
    bf16 const* rows[kRowSteps];
    CUTE_UNROLL
    for (int step = 0; step < kRowSteps; ++step)
      rows[step] = kv + __shfl_sync(~0u, offset, step * 4 + lane / 8) + lane % 8 * 8;

    CUTE_UNROLL
    for (int s = 0; s < Config::kBlockStages; ++s) {
      smem.empty[stage].wait(phase);
      if (lane == 0) {
        if (s == 0) reinterpret_cast<uint16_t*>(&smem.valid[block % 4])[warp] = valid_rows;
        smem.full[stage].arrive();
      }
      copy_stage(rows, valid_rows, s);
      arrive_after_gather(reinterpret_cast<uint64_t&>(smem.full[stage]));
      if (++stage == Config::kStages) {
        stage = 0;
        phase ^= 1;
      }
    }
    ++block;
  }

  __device__ __forceinline__ void copy_stage(bf16 const* const (&rows)[kRowSteps], uint32_t valid_rows, int s) {
    uint32_t const base = cast_smem_ptr_to_uint(smem.stage[stage]);
    CUTE_UNROLL
    for (int step = 0; step < kRowSteps; ++step) {
      int const row_in_warp = step * 4 + lane / 8, row = warp * kRowsPerWarp + row_in_warp;
      uint32_t const dst = base + row * 128 + ((lane % 8) ^ (row % 8)) * 16;  // 128-byte swizzle
      bool const valid = valid_rows >> row_in_warp & 1;
      CUTE_UNROLL
      for (int t = 0; t < Config::kStageTiles; ++t)
        gather_16B(dst + t * kTileElements * sizeof(bf16), rows[step] + (s * Config::kStageTiles + t) * kTileCols, valid);
    }
  }
};

}  // namespace dsa::sm90::prefill_few_heads
