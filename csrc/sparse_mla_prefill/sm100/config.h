// Tiles, shared memory, tensor memory and barriers of sparse MLA prefill on Blackwell. kernel.cuh draws the pipeline.
#pragma once

#include "arch/sm100/pair.cuh"
#include "arch/sm100/tmem.cuh"
#include "attention/sm100/tiles.h"

namespace dsa::sm100::prefill {

// Warps of each CTA. The products of a pair are issued by the leader's kProducts alone.
enum Role : int { kSoftmaxWarps = 4, kKeyLoader = 4, kValueLoader = 5, kProducts = 6 };
constexpr int kThreads = 7 * 32;
constexpr int kSoftmaxThreads = kSoftmaxWarps * 32;

constexpr int kPairHeads = 2 * kBlockH;
constexpr int kOwnKeys = kBlockK / 2;  // of a block, that a CTA gathers whole for Q K^T
constexpr int kKeyStages = 3;
constexpr int kValueStages = 2;
constexpr int kValueTiles = kHalfV / kTileCols;
constexpr int kKeyTileElements = kOwnKeys * kTileCols;
constexpr int kTileElements = 64 * kTileCols;  // of values, Q and probabilities
constexpr int kTmemQTiles = 6;                 // of Q; the rest stays in shared memory

// Tensor memory: columns.
enum TmemMap : uint32_t {
  kTmemO = 0,      // 256: fp32, lanes 0-63 value columns [0, 256), lanes 64-127 the rest
  kTmemS = 256,    // 2 x 32: fp32, lanes 0-63 keys [0, 32), lanes 64-127 the rest
  kTmemQ = 320,    // 192: bf16 columns [0, 384) of Q, twice
  kTmemEnd = 512,  // all of it: one CTA an SM
};
constexpr uint32_t kTmemSColumns = kBlockK / 2;
static_assert(kTmemS + 2 * kTmemSColumns == kTmemQ && kTmemQ + kTmemQTiles * kTileCols / 2 == kTmemEnd);
static_assert(kTmemEnd <= kTmemColumns);

template <int kDQk_>
struct Config {
  static_assert(kDQk_ == 576 || kDQk_ == 512);
  static constexpr int kDQk = kDQk_;
  static constexpr int kTiles = kDQk / kTileCols;
  static constexpr int kTailTiles = kTiles - kTmemQTiles;
  static constexpr int kKeyElements = kTiles * kKeyTileElements;
  static constexpr uint32_t kKeyBytes = kKeyElements * sizeof(bf16);
  static constexpr uint32_t kValueBytes = kValueTiles * kTileElements * sizeof(bf16);
  static constexpr uint32_t kTailBytes = kTailTiles * kTileElements * sizeof(bf16);
  // Q for tensor memory passes through the ring of keys, in two parts.
  static constexpr int kFirstPartTiles = 4, kSecondPartTiles = kTmemQTiles - kFirstPartTiles;
  static constexpr uint32_t kQTileBytes = kTileElements * sizeof(bf16);
  static_assert(kFirstPartTiles * kQTileBytes <= kKeyBytes);

  struct SharedStorage {
    alignas(1024) bf16 key[kKeyStages][kKeyElements];  // own half of the keys, all columns; or tiles of Q
    alignas(1024) bf16 value[kValueStages][kValueTiles * kTileElements];  // all keys, own half of the value columns
    alignas(1024) bf16 q_tail[kTailTiles * kTileElements];
    alignas(1024) bf16 p[kTileElements];  // probabilities, own heads x all keys
    float top[2][kSoftmaxThreads];        // what the two threads of a row tell each other, by a block's parity
    float sum[kSoftmaxThreads];
    // Barriers. "Leader": the leader's are used by both CTAs, the other's lie idle; "each": products signal both.
    //              where   arrives                                            waits
    // key_full     leader  both CTAs' loads (one thread + bytes)              products, before Q K^T or Q's copy
    // key_empty    each    Q K^T, or Q's copy to tensor memory, is done       key loader
    // q_full       leader  both CTAs' loads of q_tail                         products, before a tile's first Q K^T
    // q_empty      each    a tile's last Q K^T is done                        key loader, before the next q_tail
    // value_full   leader  both CTAs' loads                                   products, before P V
    // value_empty  each    P V is done                                        value loader
    // s_full       each    Q K^T is done                                      softmax; products, before Q is replaced
    // s_empty      leader  8 softmax warps have read their scores             products, before Q K^T of two blocks on
    // p_full       leader  8 softmax warps: p is written, O may be added to   products, before P V
    // o_full       each    P V is done                                        softmax, before p is overwritten or O
    // read
    Barrier key_full[kKeyStages], key_empty[kKeyStages], q_full, q_empty;
    Barrier value_full[kValueStages], value_empty[kValueStages];
    Barrier s_full[2], s_empty[2], p_full, o_full;
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
    for (Barrier& b : smem.s_empty) b.init(2 * kSoftmaxWarps);
    smem.p_full.init(2 * kSoftmaxWarps);
    smem.q_full.init(1);
    smem.q_empty.init(1);
    smem.o_full.init(1);
    cutlass::arch::fence_barrier_init();
  }
};

// Named barriers (hardware barrier 0 is __syncthreads'). Warps w and w + 2 have the halves of the same rows.
enum NamedBarrier : uint32_t { kRowHalves = 1 };  // and 2: 64 threads each

}  // namespace dsa::sm100::prefill
