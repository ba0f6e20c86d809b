// The producers, a warpgroup for each consumer: they gather the rows that idx names into its key tiles. One warpgroup
// that served both by turns would wait for a consumer at its query's end while the other one's tiles are free.
#pragma once

#include "arch/sm90/gather.cuh"
#include "attention/sm90/few_heads/config.h"
#include "sparse_mla_prefill/sm90/index_stream.cuh"
#include "sparse_mla_prefill/sm90/work.cuh"

namespace dsa::sm90::prefill_few_heads {

template <class Config>
struct Producer {
  // Eight lanes copy one row, 128 bytes a step. A warp fills rows 16 w .. 16 w + 15 of a block, four at a time, so
  // that lane l < 16 can hold the index of row 16 w + l.
  static constexpr int kRowsPerWarp = kBlockK / 4;
  static constexpr int kRowSteps = kRowsPerWarp / 4;

  using Shared = typename Config::SharedStorage;

  KernelParams const& params;
  Shared& smem;
  int const consumer;
  Work work;
  int const warp, lane;
  TileKeys keys;
  int block = 0, blocks = 0;  // of the query
  uint32_t number = 0;        // of the block, since the kernel's start
  int index = -1;             // this lane's, of the next block; loaded a block ahead: lists come from memory

  __device__ __forceinline__ Producer(KernelParams const& params, Shared& smem, int consumer)
      : params(params),
        smem(smem),
        consumer(consumer),
        work(params, consumer),
        warp(threadIdx.x / 32 % 4),
        lane(threadIdx.x % 32) {
    if (!work.done()) open();
  }

  __device__ __forceinline__ void run() {
    while (!work.done()) gather_block();
  }

 private:
  __device__ __forceinline__ void gather_block() {
    __nv_bfloat16 const* const kv = keys.kv;
    int const row = index;
    if (++block < blocks) {
      index = load_index(keys.idx, keys.length, block * kBlockK + place());
    } else {
      work.advance();
      if (!work.done()) open();
    }
    gather(kv, row);
  }

  __device__ __forceinline__ int place() const { return warp * kRowsPerWarp + lane % kRowsPerWarp; }

  __device__ __forceinline__ void open() {
    keys = TileKeys(params, work.tile());
    block = 0;
    blocks = params.blocks(keys.length);
    index = load_index(keys.idx, keys.length, place());
  }

  __device__ __forceinline__ void gather(__nv_bfloat16 const* kv, int row) {
    bool const valid = uint32_t(row) < uint32_t(params.s_kv);
    uint32_t const valid_rows = __ballot_sync(~0u, valid) & 0xffff;
    int64_t const offset = valid ? row * params.kv_stride_token : 0;
    __nv_bfloat16 const* rows[kRowSteps];
    CUTE_UNROLL
    for (int step = 0; step < kRowSteps; ++step)
      rows[step] = kv + __shfl_sync(~0u, offset, step * 4 + lane / 8) + lane % 8 * 8;

    CUTE_UNROLL
    for (int g = 0; g < Config::kGroups; ++g) {
      int const barrier = Shared::barrier(g, number);
      smem.empty[consumer][barrier].wait(Shared::phase(g, number) ^ 1);  // all tiles start out free
      if (lane == 0) {
        if (g == 0) reinterpret_cast<uint16_t*>(&smem.valid[consumer][number % 2])[warp] = valid_rows;
        smem.full[consumer][barrier].arrive();
      }
      CUTE_UNROLL
      for (int p = Config::group_begin(g); p < Config::group_end(g); ++p)
        copy_tile(rows, valid_rows, Config::column_tile(p),
                  cast_smem_ptr_to_uint(smem.tile[consumer][Shared::buffer(p, number)]));
      arrive_after_gather(reinterpret_cast<uint64_t&>(smem.full[consumer][barrier]));
    }
    ++number;
  }

  __device__ __forceinline__ void copy_tile(__nv_bfloat16 const* const (&rows)[kRowSteps], uint32_t valid_rows,
                                            int column_tile, uint32_t base) {
    CUTE_UNROLL
    for (int step = 0; step < kRowSteps; ++step) {
      int const row_in_warp = step * 4 + lane / 8, row = warp * kRowsPerWarp + row_in_warp;
      uint32_t const dst = base + row * 128 + ((lane % 8) ^ (row % 8)) * 16;  // 128-byte swizzle
      gather_16B(dst, rows[step] + column_tile * kTileCols, valid_rows >> row_in_warp & 1);
    }
  }
};

}  // namespace dsa::sm90::prefill_few_heads
