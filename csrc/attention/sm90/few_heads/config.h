// Tiles, shared memory and barriers of the attention kernels for few heads on Hopper. consumer.cuh draws the pipeline.
#pragma once

#include "attention/sm90/tiles.h"

namespace dsa::sm90::few_heads {

// A tile of keys [64, 64 columns], as the left operand of S^T = K Q^T and, read across, of O^T = V^T P^T.
using KeyLayout = decltype(tile_to_shape(GMMA::Layout_K_SW128_Atom<bf16>{}, Shape<_64, _64>{}));
using ValueLayout = decltype(tile_to_shape(GMMA::Layout_MN_SW128_Atom<bf16>{}, Shape<_64, _64>{}));

// wgmma with kN columns. Such products are bound by the bytes that they read, 128 a cycle: a K = 16 step takes 18
// cycles with 8 columns and 20 with 16. Keys that went through registers (ldmatrix) would be read just as often.
template <int kN>
struct Products;
template <>
struct Products<8> {
  using KQ = SM90_64x8x16_F32BF16BF16_SS<GMMA::Major::K, GMMA::Major::K>;
  using VP = SM90_64x8x16_F32BF16BF16_SS<GMMA::Major::MN, GMMA::Major::K>;
};
template <>
struct Products<16> {
  using KQ = SM90_64x16x16_F32BF16BF16_SS<GMMA::Major::K, GMMA::Major::K>;
  using VP = SM90_64x16x16_F32BF16BF16_SS<GMMA::Major::MN, GMMA::Major::K>;
};

constexpr int kAllTiles = -1;

// kHeads: columns of both products; h_q may be less. kCopiedTile: the column tile that the producer fills by copies of
// its threads, or kAllTiles; its warps write the others themselves. kSameQ: whether both consumers work on the same
// query. kProducerBytes: of shared memory, that the producers need for themselves.
template <int kDQk_, int kHeads_, int kProducerWarps, int kCopiedTile, bool kSameQ_ = false, int kProducerBytes = 0>
struct Config {
  static_assert(kDQk_ == 576 || kDQk_ == 512);
  static constexpr int kDQk = kDQk_, kHeads = kHeads_;
  static constexpr bool kSameQ = kSameQ_;
  static constexpr int kTiles = kDQk / kTileCols;
  static constexpr int kQTileElements = kHeads * kTileCols;
  static constexpr uint32_t kQBytes = kHeads * kDQk * sizeof(bf16);
  using MmaKQ = decltype(make_tiled_mma(typename Products<kHeads>::KQ{}));
  using MmaVP = decltype(make_tiled_mma(typename Products<kHeads>::VP{}));
  // [heads, 64] tiles: Q, the probabilities, the output.
  using HeadLayout = decltype(tile_to_shape(GMMA::Layout_K_SW128_Atom<bf16>{}, Shape<Int<kHeads>, _64>{}));

  // The gather is what bounds these kernels, so all the memory that is left goes to key tiles, half to each consumer. A
  // block's first kAhead tiles alternate between two places each, and the consumer gives them back last; the others
  // come each where the block before had the same one. So at any time kAhead tiles are free to be filled, as in a ring,
  // but every tile has one or two fixed places, and descriptors are cheap. (Where there is no room, kAhead is 0.)
  static constexpr int kOtherBytes =
      (kSameQ ? 1 : 2) * kQBytes + 4 * kQTileElements * int(sizeof(bf16)) + 96 * kHeads + 640 + kProducerBytes;
  static constexpr int kBuffers = (227 * 1024 - kOtherBytes) / (2 * kTileElements * int(sizeof(bf16)));
  static constexpr int kFree = kBuffers - kTiles, kOutTilesPerKeyTile = kTileElements / kQTileElements;
  static constexpr int kAhead = kFree * kOutTilesPerKeyTile >= kValueTiles ? kFree : 0;  // (for kLastGroup, below)
  static constexpr bool kFits = kFree >= 0;
  static_assert(kAhead < kTiles);
  // Which column tile comes at a position of a block. The one that is no values comes last: its place is free early.
  static constexpr int column_tile(int position) {
    return position < kAhead         ? kValueTiles - kAhead + position
           : position == kValueTiles ? kValueTiles
                                     : position - kAhead;
  }
  // Tiles are announced and released in groups, since every wait costs: the first kAhead tiles, then two or three each.
  static constexpr int kFirst = kAhead > 0;  // groups that have two places
  static constexpr int kGroups = kFirst + (kTiles - kAhead + 2) / 3;
  static constexpr int group_begin(int g) {
    return g < kFirst ? 0 : kAhead + (kTiles - kAhead) * (g - kFirst) / (kGroups - kFirst);
  }
  static constexpr int group_end(int g) { return group_begin(g + 1); }
  static constexpr bool has_copies(int g) {
    for (int p = group_begin(g); p < group_end(g); ++p)
      if (kCopiedTile == kAllTiles || column_tile(p) == kCopiedTile) return true;
    return false;
  }
  // The order in which groups are multiplied with the probabilities, and released.
  static constexpr int value_group(int i) { return (i + kFirst) % kGroups; }

  // At the end of its work on a query a consumer stages the output, kValueTiles of [heads, 64], in the key tiles that
  // are released last.
  static constexpr int kLastGroup = value_group(kGroups - 1);
  static_assert((group_end(kLastGroup) - group_begin(kLastGroup)) * kOutTilesPerKeyTile >= kValueTiles);

  struct SharedStorage {
    alignas(1024) bf16 tile[2][kBuffers][kTileElements];
    alignas(1024) bf16 q[kSameQ ? 1 : 2][kTiles * kQTileElements];
    alignas(1024) bf16 p[2][2][kQTileElements];  // probabilities of each consumer's blocks, by turns:
                                                 // a warp may be one block ahead of another that still multiplies
    float sum[2][4][kHeads];                     // of each consumer's warps, at a query's end
    float weight[2][4][kHeads];                  // the same
    float top[2][4][kHeads];                     // and the largest raw scores; also a block's when references move
    // Of a consumer's blocks by turns: whether some score of each warp exceeds its reference.
    alignas(4) bool exceeds[2][2][4];
    uint64_t valid[2][2];  // the same; bit i: key i counts
    // Of a group; the first group has two, by turns.
    // barrier      arrives                                                     waits
    // q_full[c]    TMA (one thread + bytes)                                    consumer c, before a query's first K Q^T
    //              (of one Q for both: q_full[0], both)
    // full[c]      producer warps, and their lanes' copies (has_copies)       consumer c, before a group's K Q^T
    // empty[c]     4 warps of consumer c, after a group's last product         the producer
    Barrier q_full[2], full[2][kGroups + 1], empty[2][kGroups + 1];

    // Which of a consumer's buffers holds a tile of its block of that number.
    static __device__ __forceinline__ int buffer(int position, uint32_t block) {
      return position < kAhead && block % 2 != 0 ? kTiles + position : position;
    }
    static __device__ __forceinline__ int barrier(int group, uint32_t block) {
      return group < kFirst && block % 2 != 0 ? kGroups : group;
    }
    // Parity of the barrier's phase in which the block's group lands; the producer waits for the other one.
    static __device__ __forceinline__ uint32_t phase(int group, uint32_t block) {
      return (group < kFirst ? block / 2 : block) % 2;
    }
  };
  static_assert(sizeof(SharedStorage) <= 227 * 1024);

  // By one thread, before __syncthreads.
  static __device__ __forceinline__ void init_barriers(SharedStorage& smem) {
    for (int c = 0; c < 2; ++c) {
      smem.q_full[c].init(1);
      for (int g = 0; g <= kGroups; ++g) smem.full[c][g].init(kProducerWarps * (has_copies(g % kGroups) ? 33 : 1));
      for (Barrier& b : smem.empty[c]) b.init(4);
    }
    cutlass::arch::fence_barrier_init();
  }
};

// A consumer's named barrier is 1 + its number (hardware barrier 0 is __syncthreads'), with its 128 threads.
constexpr uint32_t kConsumerBarrier = 1;

}  // namespace dsa::sm90::few_heads
