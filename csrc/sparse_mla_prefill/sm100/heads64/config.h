// Shared memory and barriers of sparse MLA prefill on Blackwell, 64 heads a CTA. kernel.cuh draws the pipeline.
#pragma once

#include "attention/sm100/operands.cuh"
#include "sparse_mla_prefill/sm100/roles.h"

namespace dsa::sm100::prefill_heads64 {

// A block of keys comes in parts, released and refilled separately: columns [0, 256), [256, 512) and [512, 576).
constexpr int kHalfTiles = 4;

template <int kDQk_>
struct Config {
  static_assert(kDQk_ == 576 || kDQk_ == 512);
  static constexpr int kCtas = 1;
  static constexpr int kValueRun = 128;  // attention/sm100/output.cuh
  static constexpr int kTiles = kDQk_ / kTileCols;
  static constexpr int kTailTiles = kTiles - kTmemQTiles;
  static constexpr bool kHasRope = kDQk_ > kDV;
  static constexpr int kHalfElements = kHalfTiles * kTileElements;
  static constexpr int kLeftStages = 3, kRightStages = kHasRope ? 2 : 3;
  // Not used where there is none. The buffer that comes next is always free: the block before has had one of the right
  // half, which are fewer, after P V of the block that was there.
  static constexpr int kRopeStages = kHasRope ? kRightStages + 1 : 1;

  struct SharedStorage {
    alignas(1024) bf16 left[kLeftStages][kHalfElements];    // of keys; or tiles of Q for tensor memory
    alignas(1024) bf16 right[kRightStages][kHalfElements];  // the same
    alignas(1024) bf16 rope[kRopeStages][kTileElements];
    alignas(1024) bf16 q_tail[kTailTiles * kTileElements];  // the tiles of Q that are not in tensor memory
    alignas(1024) bf16 p[kTileElements];                    // probabilities, heads x keys
    float top[2][kSoftmaxThreads];  // what the two threads of a row tell each other, by a block's parity
    float sum[kSoftmaxThreads];
    // barrier      arrives                                            waits
    // left_full    loads (one thread + bytes)                         products, before Q K^T or Q's copy
    // left_empty   P V of its columns, or Q's copy, is done           first loader
    // right_*      the same                                           second loader
    // rope_full    loads                                              products, before Q K^T
    // q_full       loads of q_tail                                    products, before a tile's first Q K^T
    // q_empty      a tile's last Q K^T is done                        second loader
    // s_full       Q K^T is done                                      softmax
    // p_full       4 softmax warps: S is read, p written, O scaled    products, before P V
    // o_full       P V is done                                        softmax, before p is overwritten or O read
    Barrier left_full[kLeftStages], left_empty[kLeftStages], right_full[kRightStages], right_empty[kRightStages];
    Barrier rope_full[kRopeStages];
    Barrier q_full, q_empty[1], s_full[2], p_full, o_full;
    uint32_t tmem;  // where the CTA's tensor memory begins
  };
  static_assert(sizeof(SharedStorage) <= 227 * 1024);

  // By one thread, before __syncthreads.
  static __device__ __forceinline__ void init_barriers(SharedStorage& smem) {
    for (Barrier& b : smem.left_full) b.init(1);
    for (Barrier& b : smem.left_empty) b.init(1);
    for (Barrier& b : smem.right_full) b.init(1);
    for (Barrier& b : smem.right_empty) b.init(1);
    for (Barrier& b : smem.rope_full) b.init(1);
    for (Barrier& b : smem.s_full) b.init(1);
    smem.p_full.init(kSoftmaxWarps);
    smem.q_full.init(1);
    smem.q_empty[0].init(1);
    smem.o_full.init(1);
    cutlass::arch::fence_barrier_init();
  }
};

}  // namespace dsa::sm100::prefill_heads64
