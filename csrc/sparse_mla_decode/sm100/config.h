// Roles, shared memory and barriers of sparse MLA decode on Blackwell. kernel.cuh draws the pipeline.
#pragma once

#include "attention/sm100/operands.cuh"
#include "attention/sm100/softmax_warps.cuh"
#include "common/kv_format.h"

namespace dsa::sm100::decode {

// Warps of a CTA.
constexpr int kConverterWarps = 8;
enum Role : int { kFirstConverter = kSoftmaxWarps, kQLoader = kFirstConverter + kConverterWarps, kProducts };
constexpr int kThreads = (kProducts + 1) * 32;

// kCtas: 1 for up to 64 heads, 2 for a pair of CTAs with 64 heads each.
template <class Format_, int kCtas_>
struct Config {
  using Format = Format_;
  static constexpr int kCtas = kCtas_;
  static constexpr bool kPair = kCtas == 2;
  static constexpr int kValueRun = kPair ? 256 : 128;  // attention/sm100/output.cuh
  static constexpr int kTiles = Format::kHeadDim / kTileCols, kValueTiles = kDV / kTileCols;

  // A CTA converts kBlockK / kCtas keys of a block, whole. They are its rows of K. Of a pair's 512 value columns each
  // CTA has half, of all keys; a CTA alone reads its values from K.
  static constexpr int kOwnKeys = kBlockK / kCtas, kOwnValueTiles = kValueTiles / kCtas;
  static constexpr int kKeyTileElements = kOwnKeys * kTileCols, kKeyElements = kTiles * kKeyTileElements;
  static constexpr int kValueElements = kPair ? kOwnValueTiles * kTileElements : 8;  // not used where there is no pair
  static constexpr int kKeyStages = 2, kValueStages = kPair ? 3 : 1;

  // Q comes a few tiles at a time: twice for tensor memory, then its tail, which stays.
  static constexpr int kQTiles = kTmemQTiles / 2, kTailTiles = kTiles - kTmemQTiles, kQStages = 2;
  static_assert(kTailTiles > 0 && kTailTiles <= kQTiles);

  struct SharedStorage {
    alignas(1024) bf16 key[kKeyStages][kKeyElements];
    alignas(1024) bf16 value[kValueStages][kValueElements];
    alignas(1024) bf16 q[kQStages][kQTiles * kTileElements];
    alignas(1024) bf16 p[kTileElements];  // probabilities, heads x keys
    float top[2][kSoftmaxThreads];        // what the two threads of a row tell each other, by a block's parity
    float sum[kSoftmaxThreads];
    // "leader": the leader's are used by both CTAs of a pair, the other's lie idle. "each": products signal both.
    // barrier      where   arrives                                            waits
    // q_full       leader  all CTAs' loads (one thread + bytes)               products, before Q's copy or use
    // q_empty      each    Q's copy, or a tile's last Q K^T, is done          Q loader
    // key_full     leader  8 converter warps of each CTA: key, value written  products, before Q K^T
    // key_empty    each    a pair's Q K^T, or else P V, is done               converters
    // value_empty  each    a pair's P V is done                               converters
    // s_full       each    Q K^T is done                                      softmax
    // p_full       leader  4 softmax warps of each: S read, p written, O scaled  products, before P V
    // o_full       each    P V is done                                        softmax, before p is overwritten or O
    // read
    Barrier q_full[kQStages], q_empty[kQStages], key_full[kKeyStages], key_empty[kKeyStages];
    Barrier value_empty[kValueStages], s_full[2], p_full, o_full;
    uint32_t tmem;  // where this CTA's tensor memory begins
  };
  static_assert(sizeof(SharedStorage) <= 227 * 1024);

  // By one thread, before the barrier of all.
  static __device__ __forceinline__ void init_barriers(SharedStorage& smem) {
    for (Barrier& b : smem.q_full) b.init(1);
    for (Barrier& b : smem.q_empty) b.init(1);
    for (Barrier& b : smem.key_full) b.init(kCtas * kConverterWarps);
    for (Barrier& b : smem.key_empty) b.init(1);
    for (Barrier& b : smem.value_empty) b.init(1);
    for (Barrier& b : smem.s_full) b.init(1);
    smem.p_full.init(kCtas * kSoftmaxWarps);
    smem.o_full.init(1);
    cutlass::arch::fence_barrier_init();
  }

  // Products may still signal a CTA's barriers: it must not end before. `place` is the next to be filled.
  template <int kStages>
  static __device__ __forceinline__ void drain(Barrier (&empty)[kStages], RingPlace<kStages> place) {
    for (int n = 0; n < kStages; ++n, place.advance()) empty[place.stage].wait(place.phase ^ 1);
  }
};

// Which worker a CTA belongs to, and of how many.
template <class Config>
__device__ __forceinline__ int worker() {
  return int(blockIdx.x) / Config::kCtas;
}
template <class Config>
__device__ __forceinline__ int workers() {
  return int(gridDim.x) / Config::kCtas;
}

}  // namespace dsa::sm100::decode
