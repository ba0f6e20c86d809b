// The producer warpgroup: gathers the rows that idx names into the consumers' rings of stages.
#pragma once

#include "arch/sm90/gather.cuh"
#include "config.h"
#include "sparse_mla_prefill/sm90/index_stream.cuh"

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
  uint32_t pair = 0;  // of blocks, one for each consumer, since the kernel's start

  __device__ __forceinline__ Producer(KernelParams const& params, Shared& smem)
      : params(params), smem(smem), warp(threadIdx.x / 32 % 4), lane(threadIdx.x % 32) {}

  __device__ __forceinline__ void run() {
    int const place = warp * kRowsPerWarp + lane % kRowsPerWarp;  // of this lane's index in a block
    for_each_pair(params, place, [&](__nv_bfloat16 const* kv, int first, int second) {
      gather_block(kv, first, 0);
      gather_block(kv, second, 1);
      ++pair;
    });
  }

 private:
  __device__ __forceinline__ void gather_block(__nv_bfloat16 const* kv, int index, int consumer) {
    bool const valid = uint32_t(index) < uint32_t(params.s_kv);
    uint32_t const valid_rows = __ballot_sync(~0u, valid) & 0xffff;
    int64_t const offset = valid ? index * params.kv_stride_token : 0;
    __nv_bfloat16 const* rows[kRowSteps];
    CUTE_UNROLL
    for (int step = 0; step < kRowSteps; ++step)
      rows[step] = kv + __shfl_sync(~0u, offset, step * 4 + lane / 8) + lane % 8 * 8;

    CUTE_UNROLL
    for (int s = 0; s < Config::kBlockStages; ++s) {
      uint32_t const n = pair * Config::kBlockStages + s, stage = n % Config::kStages;
      smem.empty[consumer][stage].wait(n / Config::kStages & 1 ^ 1);  // all stages start out free
      if (lane == 0) {
        if (s == 0) reinterpret_cast<uint16_t*>(&smem.valid[consumer][pair % 2])[warp] = valid_rows;
        smem.full[consumer][stage].arrive();
      }
      copy_stage(rows, valid_rows, s, cast_smem_ptr_to_uint(smem.stage[consumer][stage]));
      arrive_after_gather(reinterpret_cast<uint64_t&>(smem.full[consumer][stage]));
    }
  }

  __device__ __forceinline__ void copy_stage(__nv_bfloat16 const* const (&rows)[kRowSteps], uint32_t valid_rows, int s,
                                             uint32_t base) {
    CUTE_UNROLL
    for (int step = 0; step < kRowSteps; ++step) {
      int const row_in_warp = step * 4 + lane / 8, row = warp * kRowsPerWarp + row_in_warp;
      uint32_t const dst = base + row * 128 + ((lane % 8) ^ (row % 8)) * 16;  // 128-byte swizzle
      bool const valid = valid_rows >> row_in_warp & 1;
      CUTE_UNROLL
      for (int t = 0; t < Config::kStageTiles; ++t)
        gather_16B(dst + t * kTileElements * sizeof(bf16), rows[step] + (s * Config::kStageTiles + t) * kTileCols,
                   valid);
    }
  }
};

}  // namespace dsa::sm90::prefill_few_heads
