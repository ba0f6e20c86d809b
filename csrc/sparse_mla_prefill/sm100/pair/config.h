// Shared memory and barriers of sparse MLA prefill on Blackwell, 128 heads a pair of CTAs. kernel.cuh draws the
// pipeline.
#pragma once

#include "attention/sm100/operands.cuh"
#include "sparse_mla_prefill/sm100/roles.h"

namespace dsa::sm100::prefill_pair {

constexpr int kOwnKeys = kBlockK / 2;  // of a block, that a CTA gathers whole for Q K^T
constexpr int kKeyStages = 3;
constexpr int kValueStages = 2;
constexpr int kHalfTiles = kHalfV / kTileCols;
constexpr int kKeyTileElements = kOwnKeys * kTileCols;

template <int kDQk_>
struct Config {
  static_assert(kDQk_ == 576 || kDQk_ == 512);
  static constexpr int kCtas = 2;
  static constexpr int kValueRun = 256;  // attention/sm100/output.cuh
  static constexpr int kTiles = kDQk_ / kTileCols;
  static constexpr int kTailTiles = kTiles - kTmemQTiles;
  static constexpr int kKeyElements = kTiles * kKeyTileElements;
  static constexpr int kValueElements = kHalfTiles * kTileElements;
  // Q for tensor memory passes through the ring of keys, in two parts.
  static constexpr int kFirstPartTiles = 4, kSecondPartTiles = kTmemQTiles - kFirstPartTiles;
  static_assert(kFirstPartTiles * kTileElements <= kKeyElements);

  struct SharedStorage {
    alignas(1024) bf16 key[kKeyStages][kKeyElements];        // own half of the keys, all columns; or tiles of Q
    alignas(1024) bf16 value[kValueStages][kValueElements];  // all keys, own half of the value columns
    alignas(1024) bf16 q_tail[kTailTiles * kTileElements];   // the tiles of Q that are not in tensor memory
    alignas(1024) bf16 p[kTileElements];                     // probabilities, own heads x all keys
    float top[2][kSoftmaxThreads];  // what the two threads of a row tell each other, by a block's parity
    float sum[kSoftmaxThreads];
    // "leader": the leader's are used by both CTAs, the other's lie idle. "each": products signal both.
    // barrier      where   arrives                                            waits
    // key_full     leader  both CTAs' loads (one thread + bytes)              products, before Q K^T or Q's copy
    // key_empty    each    Q K^T, or Q's copy to tensor memory, is done       key loader
    // q_full       leader  both CTAs' loads of q_tail                         products, before a tile's first Q K^T
    // q_empty      each    a tile's last Q K^T is done                        key loader, before the next q_tail
    // value_full   leader  both CTAs' loads                                   products, before P V
    // value_empty  each    P V is done                                        value loader
    // s_full       each    Q K^T is done                                      softmax
    // p_full       leader  8 softmax warps: S is read, p written, O scaled    products, before P V
    // o_full       each    P V is done                                        softmax, before p is overwritten or O
    // read
    Barrier key_full[kKeyStages], key_empty[kKeyStages], q_full, q_empty[1];
    Barrier value_full[kValueStages], value_empty[kValueStages];
    Barrier s_full[2], p_full, o_full;
    uint32_t tmem;  // where this CTA's tensor memory begins
  };
  static_assert(sizeof(SharedStorage) <= 227 * 1024);

  // By one thread, before the cluster's barrier.
  static __device__ __forceinline__ void init_barriers(SharedStorage& smem) {
    for (Barrier& b : smem.key_full) b.init(1);
    for (Barrier& b : smem.key_empty) b.init(1);
    for (Barrier& b : smem.value_full) b.init(1);
    for (Barrier& b : smem.value_empty) b.init(1);
    for (Barrier& b : smem.s_full) b.init(1);
    smem.p_full.init(kCtas * kSoftmaxWarps);
    smem.q_full.init(1);
    smem.q_empty[0].init(1);
    smem.o_full.init(1);
    cutlass::arch::fence_barrier_init();
  }
};

}  // namespace dsa::sm100::prefill_pair
