// The four softmax warps of a CTA, which also write the output. Thread t has row (head) t % 64 of the CTA's, keys
// [0, 32) of every block if t < 64, the others else, and half of the value columns.
#pragma once

#include <cutlass/arch/barrier.h>

#include "arch/sm100/rows64.cuh"
#include "attention/sm100/output.cuh"
#include "attention/sm100/softmax.cuh"
#include "attention/sm100/tmem_map.h"
#include "roles.h"
#include "work.h"

namespace dsa::sm100 {

template <class Config>
struct Softmax {
  using Shared = typename Config::SharedStorage;

  KernelParams const& params;
  Shared& smem;
  uint32_t const tmem;
  int const thread, warp, lane, row, half;
  int const cta_head;  // of a tile's heads, the CTA's first
  float const scale_log2;
  uint32_t block = 0;  // of all tiles
  RowStats stats;

  __device__ __forceinline__ Softmax(KernelParams const& params, Shared& smem, uint32_t rank)
      : params(params),
        smem(smem),
        tmem(smem.tmem),
        thread(threadIdx.x),
        warp(threadIdx.x / 32),
        lane(threadIdx.x % 32),
        row(threadIdx.x % kBlockH),
        half(threadIdx.x / kBlockH),
        cta_head(int(rank) * kBlockH),
        scale_log2(params.scale * kLog2e) {}

  __device__ __forceinline__ void run() {
    for (uint64_t i = blockIdx.x / Config::kCtas; i < params.tiles; i += gridDim.x / Config::kCtas) {
      Tile const tile = params.tile(uint32_t(i));
      TileKeys const keys(params, tile);
      int const blocks = keys.blocks();
      stats = RowStats{};
      int next = keys.row(half * kThreadKeys + lane);
#pragma unroll 1
      for (int n = 0; n < blocks; ++n, ++block) {
        uint32_t const valid = __ballot_sync(~0u, next >= 0);
        next = keys.row(uint32_t(n + 1) * kBlockK + half * kThreadKeys + lane);
        one_block(valid, n == 0);
      }
      finish(tile);
    }
  }

 private:
  __device__ __forceinline__ void one_block(uint32_t valid, bool first_of_tile) {
    float scores[kThreadKeys];
    read_scores(scores);
    mask_scores(scores, valid);
    float const factor = stats.meet(exchange(smem.top[block % 2], largest(scores), Larger{}), scale_log2);
    uint32_t p[kThreadKeys / 2];
    stats.exponentiate(scores, p, scale_log2);
    if (block > 0) wait_output();
    // What the first P V of a tile finds in O does not count.
    if (!first_of_tile && __any_sync(~0u, factor != 1.f)) rescale_output(tmem + kTmemO, factor);
    write_probabilities(p);
    before_tmem_handover();
    __syncwarp();
    if (lane == 0) arrive_at_leader(smem.p_full);
  }

  __device__ __forceinline__ void read_scores(float (&scores)[kThreadKeys]) {
    uint32_t const buffer = block % 2;
    smem.s_full[buffer].wait(block / 2 % 2);
    after_tmem_handover();
    uint32_t raw[kThreadKeys];
    load_tmem(tmem + kTmemS + buffer * kTmemSColumns, raw);
    wait_for_tmem_loads(raw);
    before_tmem_handover();
    __syncwarp();
    if (lane == 0) arrive_at_leader(smem.s_empty[buffer]);
    CUTE_UNROLL
    for (int i = 0; i < kThreadKeys; ++i) scores[i] = __uint_as_float(raw[i]);
  }

  // P V of the previous block is done.
  __device__ __forceinline__ void wait_output() {
    smem.o_full.wait((block - 1) % 2);
    after_tmem_handover();
  }

  __device__ __forceinline__ void write_probabilities(uint32_t const (&p)[kThreadKeys / 2]) {
    uint4* const to = reinterpret_cast<uint4*>(smem.p + row * kTileCols);
    CUTE_UNROLL
    for (int i = 0; i < kThreadKeys / 8; ++i)  // pieces of 16 bytes, in the 128-byte swizzle
      to[(half * (kThreadKeys / 8) + i) ^ (row % 8)] = make_uint4(p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]);
    cutlass::arch::fence_view_async_shared();
  }

  struct Larger {
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
  };
  struct Sum {
    __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
  };
  // Both threads of a row get what `both` makes of their numbers.
  template <class Both>
  __device__ __forceinline__ float exchange(float (&numbers)[kSoftmaxThreads], float mine, Both both) const {
    numbers[thread] = mine;
    cutlass::arch::NamedBarrier::arrive_and_wait(64, kRowHalves + warp % 2);
    return both(mine, numbers[thread ^ kBlockH]);
  }

  __device__ __forceinline__ void finish(Tile const& tile) {
    float const sum = exchange(smem.sum, stats.sum, Sum{});
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
    wait_output();
    write_output<Config::kValueRun>(tmem + kTmemO, output_scale(sum, stats.reference, sink), out,
                                    params.out_stride_head, params.h_q - first, half, lane);
  }
};

}  // namespace dsa::sm100
