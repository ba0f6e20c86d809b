// The four softmax warps of a CTA: what they do with a block of keys, and how they sum up. Thread t has row (head)
// t % 64 of the CTA's, keys [0, 32) of every block if t < 64, the others else, and half of the value columns.
#pragma once

#include <cutlass/arch/barrier.h>

#include "arch/sm100/rows64.cuh"
#include "output.cuh"
#include "softmax.cuh"
#include "tmem_map.h"

namespace dsa::sm100 {

constexpr int kSoftmaxWarps = 4, kSoftmaxThreads = kSoftmaxWarps * 32;

// Named barriers (hardware barrier 0 is __syncthreads'). Warps w and w + 2 have the halves of the same rows.
enum NamedBarrier : unsigned { kRowHalves = 1 };  // and 2: 64 threads each

// Shared has p, top, sum, tmem and the barriers s_full, p_full, o_full; a kernel's config.h says who waits.
template <class Shared>
struct SoftmaxWarps {
  Shared& smem;
  uint32_t const tmem;
  int const thread, warp, lane, row, half;
  float const scale_log2;
  uint32_t block = 0;  // of all tiles
  RowStats stats;

  __device__ __forceinline__ SoftmaxWarps(Shared& smem, float scale)
      : smem(smem),
        tmem(smem.tmem),
        thread(threadIdx.x),
        warp(threadIdx.x / 32),
        lane(threadIdx.x % 32),
        row(threadIdx.x % kBlockH),
        half(threadIdx.x / kBlockH),
        scale_log2(scale * kLog2e) {}

  // `valid`: of the thread's keys, which count.
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
    ++block;
  }

  // Over all keys of the row.
  __device__ __forceinline__ float row_sum() const { return exchange(smem.sum, stats.sum, Sum{}); }

  // P V of the last block is done.
  __device__ __forceinline__ void wait_output() {
    smem.o_full.wait((block - 1) % 2);
    after_tmem_handover();
  }

 private:
  __device__ __forceinline__ void read_scores(float (&scores)[kThreadKeys]) {
    uint32_t const buffer = block % 2;
    smem.s_full[buffer].wait(block / 2 % 2);
    after_tmem_handover();
    uint32_t raw[kThreadKeys];
    load_tmem(tmem + kTmemS + buffer * kTmemSColumns, raw);
    wait_for_tmem_loads(raw);
    CUTE_UNROLL
    for (int i = 0; i < kThreadKeys; ++i) scores[i] = __uint_as_float(raw[i]);
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
};

}  // namespace dsa::sm100
