// Tiles, shared memory and barriers of the 64-head sparse prefill kernel on Hopper. kernel.cuh draws the pipeline.
#pragma once

#include <cutlass/arch/barrier.h>

#include <cute/tensor.hpp>

#include "sparse_mla_prefill/sm90/work.h"

namespace dsa::sm90::prefill_heads64 {

using namespace cute;
using bf16 = cutlass::bfloat16_t;
using Barrier = cutlass::arch::ClusterTransactionBarrier;

constexpr int kBlockH = 64;    // heads a tile: rows of both products
constexpr int kTileCols = 64;  // columns of one 128-byte swizzled tile
constexpr int kDV = 512;
constexpr int kHalfV = kDV / 2;                 // value columns that one consumer accumulates
constexpr int kHalfTiles = kHalfV / kTileCols;  // their tiles

// Two consumer warpgroups and a producer. Registers: 2 * 216 + 72 = 504 of 512 a lane of three warpgroups.
constexpr int kThreads = 384;
constexpr int kConsumerRegisters = 216;
constexpr int kProducerRegisters = 72;

// Which consumer does what. Key blocks come in pairs, one per consumer for Q K^T; each adds both blocks of the pair to
// its own half of the value columns.
//   Even: scores of block 2j,   values [0, 256)
//   Odd:  scores of block 2j+1, values [256, 512)
enum : int { kEven = 0, kOdd = 1 };
// Halves of a key block, released and refilled separately: columns [0, 256) and [256, d_qk).
enum : int { kLeft = 0, kRight = 1 };

using TileLayout = decltype(tile_to_shape(GMMA::Layout_K_SW128_Atom<bf16>{}, Shape<_64, _64>{}));
constexpr int kTileElements = cosize_v<TileLayout>;
// Adjacent tiles as one operand of Q K^T.
template <int kCols>
using ScoreLayout = decltype(tile_to_shape(GMMA::Layout_K_SW128_Atom<bf16>{}, Shape<_64, Int<kCols>>{}));
// The same bytes of four tiles, read as value columns [256] x keys [64].
using ValueLayout =
    decltype(tile_to_shape(GMMA::Layout_MN_SW128_Atom<bf16>{}, Shape<Int<kHalfV>, _64>{}, Step<_2, _1>{}));

using MmaQK = decltype(make_tiled_mma(SM90_64x64x16_F32BF16BF16_SS<GMMA::Major::K, GMMA::Major::K>{}));
using MmaPV = decltype(make_tiled_mma(SM90_64x256x16_F32BF16BF16_RS<GMMA::Major::K, GMMA::Major::MN>{}));
using MmaPVShared = decltype(make_tiled_mma(SM90_64x256x16_F32BF16BF16_SS<GMMA::Major::K, GMMA::Major::MN>{}));

template <int kDQk_>
struct Config {
  static_assert(kDQk_ == 576 || kDQk_ == 512);
  static constexpr int kDQk = kDQk_;
  static constexpr int kTiles = kDQk / kTileCols;
  static constexpr uint32_t kQBytes = kBlockH * kDQk * sizeof(bf16);
  // Two key blocks and Q leave room for one tile of probabilities. With d_qk 576 the even block's go where its rope
  // columns were: those are no values, and nobody reads them after Q K^T.
  static constexpr bool kEvenPOverRope = kDQk > kDV;

  struct SharedStorage {
    alignas(1024) bf16 q[kTiles * kTileElements];
    alignas(1024) bf16 k[2][kTiles * kTileElements];
    alignas(1024) bf16 p[kEvenPOverRope ? 1 : 2][kTileElements];
    float reference[2][kBlockH];  // softmax references that each consumer's probabilities are relative to
    float sum[2][kBlockH];        // each consumer's share of the row sums, at a tile's end
    float top[2][kBlockH];        // and of the largest scores
    uint64_t valid[2];            // bit i: key i of the block counts
    // barrier        arrives                                     waits
    // q_full         TMA (one thread + bytes)                    both consumers, before a tile's first Q K^T
    // full[b][h]     128 producer threads' copies, and for kLeft the consumer of block b (scores)
    //                4 warps that wrote their part of valid[b]
    // empty[b][h]    4 warps of consumer h, after P V            the producer
    Barrier q_full, full[2][2], empty[2][2];

    __device__ bf16* even_p() {
      if constexpr (kEvenPOverRope)
        return &k[0][(kTiles - 1) * kTileElements];
      else
        return p[1];
    }
    __device__ bf16* odd_p() { return p[0]; }
  };
  static_assert(sizeof(SharedStorage) <= 227 * 1024);
};

// Named barriers (hardware barrier 0 is __syncthreads'), with the threads that take part.
enum NamedBarrier : uint32_t {
  kEvenPReady = 1,  // 256: even consumer arrives, odd one waits; probabilities and references of block 2j
  kOddPReady = 2,   // 256: the reverse, block 2j+1
  kEvenScores = 3,  // 128: the even consumer's four warps have their scores: the rope tile may be overwritten
  kStatsReady = 4,  // 256: both wait; sums and maxima of a finished tile, whose products are all done
};

}  // namespace dsa::sm90::prefill_heads64
