// Tiles, shared memory and barriers of the attention kernels on Hopper for 64 heads a tile. consumer.cuh draws the
// pipeline.
#pragma once

#include "attention/sm90/tiles.h"

namespace dsa::sm90::heads64 {

constexpr int kBlockH = 64;                     // heads a tile: rows of both products
constexpr int kHalfV = kDV / 2;                 // value columns of one consumer
constexpr int kHalfTiles = kHalfV / kTileCols;  // their tiles

// Which consumer does what. Key blocks come in pairs, one per consumer for Q K^T; each adds both blocks of the pair to
// its own half of the value columns.
//   Even: scores of block 2j,   values [0, 256)
//   Odd:  scores of block 2j+1, values [256, 512)
enum : int { kEven = 0, kOdd = 1 };
// Halves of a key block, released and refilled separately: columns [0, 256) and [256, d_qk).
enum : int { kLeft = 0, kRight = 1 };

template <int kCount>
struct Tiles {
  alignas(1024) bf16 tile[kCount][kTileElements];
};
template <>
struct Tiles<0> {};
using TileLayout = decltype(tile_to_shape(GMMA::Layout_K_SW128_Atom<bf16>{}, Shape<_64, _64>{}));
// Adjacent tiles as one operand of Q K^T.
template <int kCols>
using ScoreLayout = decltype(tile_to_shape(GMMA::Layout_K_SW128_Atom<bf16>{}, Shape<_64, Int<kCols>>{}));
// The same bytes of such tiles, read as value columns x keys [64].
template <int kCols>
using ValueLayout =
    decltype(tile_to_shape(GMMA::Layout_MN_SW128_Atom<bf16>{}, Shape<Int<kCols>, _64>{}, Step<_2, _1>{}));

using MmaQK = decltype(make_tiled_mma(SM90_64x64x16_F32BF16BF16_SS<GMMA::Major::K, GMMA::Major::K>{}));
// P V, with so many value columns an instruction. 256 are 5 % faster than 128, but ptxas takes an instruction with as
// many accumulators only in kernels of up to 384 threads.
template <int kColumns>
struct ValueProducts;
template <>
struct ValueProducts<256> {
  using FromRegisters = SM90_64x256x16_F32BF16BF16_RS<GMMA::Major::K, GMMA::Major::MN>;
  using FromShared = SM90_64x256x16_F32BF16BF16_SS<GMMA::Major::K, GMMA::Major::MN>;
};
template <>
struct ValueProducts<128> {
  using FromRegisters = SM90_64x128x16_F32BF16BF16_RS<GMMA::Major::K, GMMA::Major::MN>;
  using FromShared = SM90_64x128x16_F32BF16BF16_SS<GMMA::Major::K, GMMA::Major::MN>;
};

// kLeftArrivals, kRightArrivals: a producer's on a full barrier, for a half of a block. kKeysAreLate_: the producer is
// the slower side, and gets a half of the even block back before the odd probabilities are done, not after.
// kColumnCtas_: CTAs that have all of a tile's scores, and of each consumer's value columns a share. kOddPOverRope_:
// whether the odd block's probabilities also go where its RoPE columns were, so that their tile is free.
template <int kDQk_, int kLeftArrivals_, int kRightArrivals_, int kValueColumns, bool kKeysAreLate_,
          int kColumnCtas_ = 1, bool kOddPOverRope_ = false>
struct Config {
  static_assert(kDQk_ == 576 || kDQk_ == 512);
  static constexpr int kDQk = kDQk_;
  static constexpr int kLeftArrivals = kLeftArrivals_, kRightArrivals = kRightArrivals_;
  static constexpr int kTiles = kDQk / kTileCols;
  static constexpr bool kKeysAreLate = kKeysAreLate_;
  static constexpr int kColumnCtas = kColumnCtas_;
  static constexpr int kOwnV = kHalfV / kColumnCtas;  // value columns that a consumer accumulates
  using MmaPV = decltype(make_tiled_mma(typename ValueProducts<kValueColumns>::FromRegisters{}));
  using MmaPVShared = decltype(make_tiled_mma(typename ValueProducts<kValueColumns>::FromShared{}));
  static constexpr uint32_t kQBytes = kBlockH * kDQk * sizeof(bf16);
  // Two key blocks and Q leave room for one tile of probabilities. With d_qk 576 the even block's go where its rope
  // columns were: those are no values, and nobody reads them after Q K^T.
  static constexpr bool kEvenPOverRope = kDQk > kDV, kOddPOverRope = kOddPOverRope_;
  static_assert(!kOddPOverRope || kEvenPOverRope);

  struct SharedStorage {
    alignas(1024) bf16 q[kTiles * kTileElements];
    alignas(1024) bf16 k[2][kTiles * kTileElements];
    [[no_unique_address]] Tiles<!kOddPOverRope + !kEvenPOverRope> p;
    float reference[2][kBlockH];  // softmax references that each consumer's probabilities are relative to
    float sum[2][kBlockH];        // each consumer's share of the row sums, at a tile's end
    float top[2][kBlockH];        // and of the largest scores
    uint64_t valid[2];            // bit i: key i of the block counts
    // barrier        arrives                                     waits
    // q_full         TMA (one thread + bytes)                    both consumers, before a tile's first Q K^T
    // full[b][h]     producer, with the half's keys, for kLeft   the consumer of block b (scores)
    //                with valid[b] too
    // empty[b][h]    4 warps of consumer h, after P V; of the    the producer
    //                even one, too, where the half has the odd
    //                probabilities
    Barrier q_full, full[2][2], empty[2][2];

    __device__ bf16* even_p() {
      if constexpr (kEvenPOverRope)
        return &k[0][(kTiles - 1) * kTileElements];
      else
        return p.tile[1];
    }
    __device__ bf16* odd_p() {
      if constexpr (kOddPOverRope)
        return &k[1][(kTiles - 1) * kTileElements];
      else
        return p.tile[0];
    }
  };
  static_assert(sizeof(SharedStorage) <= 227 * 1024);

  // By one thread, before __syncthreads.
  static __device__ __forceinline__ void init_barriers(SharedStorage& smem) {
    smem.q_full.init(1);
    for (int buffer = 0; buffer < 2; ++buffer) {
      smem.full[buffer][kLeft].init(kLeftArrivals);
      smem.full[buffer][kRight].init(kRightArrivals);
      smem.empty[buffer][kLeft].init(4);
      smem.empty[buffer][kRight].init(kOddPOverRope && buffer == 1 ? 8 : 4);
    }
    cutlass::arch::fence_barrier_init();
  }
};

// Named barriers (hardware barrier 0 is __syncthreads'), with the threads that take part.
enum NamedBarrier : uint32_t {
  kEvenPReady = 1,  // 256: even consumer arrives, odd one waits; probabilities and references of block 2j
  kOddPReady = 2,   // 256: the reverse, block 2j+1
  kStatsReady = 3,  // and 4, 256: one consumer's sums and maxima of a finished tile, whose products are all done; it
                    // arrives, the other one waits
  kWarpsMeet = 5,   // and 6, 128: a consumer's four warps have their scores: the RoPE tile may be overwritten
  kQIsFree = 7,     // 160: the even consumer arrives when both have scored a team's last keys, a producer warp waits
};

}  // namespace dsa::sm90::heads64
