// Tiles, shared memory and barriers of the sparse prefill kernel for few heads on Hopper. kernel.cuh draws the
// pipeline.
#pragma once

#include <cutlass/arch/barrier.h>

#include <cute/tensor.hpp>

#include "sparse_mla_prefill/sm90/work.h"

namespace dsa::sm90::prefill_few_heads {

using namespace cute;
using bf16 = cutlass::bfloat16_t;
using Barrier = cutlass::arch::ClusterTransactionBarrier;

constexpr int kTileCols = 64;                       // columns of one 128-byte swizzled tile
constexpr int kTileElements = kBlockK * kTileCols;  // a key tile's
constexpr int kValueTiles = 512 / kTileCols;

// Two consumer warpgroups and a producer. Registers: 2 * 216 + 72 = 504 of 512 a lane of three warpgroups.
constexpr int kThreads = 384;
constexpr int kConsumerRegisters = 216;
constexpr int kProducerRegisters = 72;

// A tile of keys [64, 64 columns], as the left operand of S^T = K Q^T and, read across, of O^T = V^T P^T.
using KeyLayout = decltype(tile_to_shape(GMMA::Layout_K_SW128_Atom<bf16>{}, Shape<_64, _64>{}));
using ValueLayout = decltype(tile_to_shape(GMMA::Layout_MN_SW128_Atom<bf16>{}, Shape<_64, _64>{}));

// wgmma with kN columns.
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
// kHeads: columns of both products; h_q may be less.
template <int kDQk_, int kHeads_>
struct Config {
  static constexpr int kDQk = kDQk_, kHeads = kHeads_;
  static constexpr int kTiles = kDQk / kTileCols;
  static constexpr int kQTileElements = kHeads * kTileCols;
  static constexpr uint32_t kQBytes = kHeads * kDQk * sizeof(bf16);
  using MmaKQ = decltype(make_tiled_mma(typename Products<kHeads>::KQ{}));
  using MmaVP = decltype(make_tiled_mma(typename Products<kHeads>::VP{}));
  // [heads, 64] tiles: Q, the probabilities, the output.
  using HeadLayout = decltype(tile_to_shape(GMMA::Layout_K_SW128_Atom<bf16>{}, Shape<Int<kHeads>, _64>{}));

  // The gather is what bounds this kernel, so all the memory that is left goes to its stages, a few tiles each. Every
  // consumer has a ring of its own: copies land in any order, and in one ring a consumer could take the state that
  // another's stage has before its copies land for the state that its own stage has afterwards.
  static constexpr int kOtherBytes = kQBytes + 4 * kQTileElements * 2 + 3 * 1024 + 80 * kHeads;
  static constexpr int kRingTiles = (227 * 1024 - kOtherBytes) / (2 * kTileElements * int(sizeof(bf16)));
  static constexpr int kStageTiles = kTiles % 2 == 0 ? 2 : 3;
  static constexpr int kBlockStages = kTiles / kStageTiles;
  static constexpr int kStageElements = kStageTiles * kTileElements;
  static constexpr int kStages = kRingTiles / kStageTiles;              // a ring
  static_assert(kStages > kBlockStages && kStages < 2 * kBlockStages);  // see Shared::valid

  // At a tile's end a consumer needs some of its last block's tiles again: the last ones, for what it hands over (fp32)
  // and for its output (bf16), [heads, 64] each, four times.
  static constexpr int kShareBytes = kQTileElements * 4, kOutBytes = kQTileElements * 2;
  static constexpr int kTileBytes = kTileElements * 2;
  static constexpr int kShareTiles = (4 * kShareBytes + kTileBytes - 1) / kTileBytes;
  static constexpr int kOutTiles = (4 * kOutBytes + kTileBytes - 1) / kTileBytes;
  static constexpr int kFirstShareTile = kTiles - kShareTiles - kOutTiles, kFirstOutTile = kTiles - kOutTiles;
  static constexpr int kFirstKeptStage = kFirstShareTile / kStageTiles;

  struct SharedStorage {
    alignas(1024) bf16 stage[2][kStages][kStageElements];
    alignas(1024) bf16 q[kTiles * kQTileElements];
    alignas(1024) bf16 p[2][2][kQTileElements];  // probabilities of each consumer's blocks, by turns:
                                                 // a warp may be one block ahead of another that still multiplies
    float sum[2][4][kHeads];                     // of each consumer's warps, at a tile's end
    float top[2][4][kHeads];                     // and the largest raw scores; also a block's when references move
    float reference[2][kHeads];                  // that each consumer's sums and outputs are relative to
    // Of a consumer's blocks by turns: whether some score of each warp exceeds its reference.
    alignas(4) bool exceeds[2][2][4];
    // The same; bit i: key i counts. A ring holds parts of two blocks at most.
    uint64_t valid[2][2];
    // barrier    arrives                                                    waits
    // q_full     TMA (one thread + bytes)                                   consumers, before a tile's first K Q^T
    // q_empty    8 consumer warps, after their last K Q^T                   thread 0, before the next tile's Q
    // full[c]    128 producer threads' copies and 4 warps' parts of valid   consumer c
    // empty[c]   4 warps of consumer c, after V^T P^T                       the producer
    Barrier q_full, q_empty, full[2][kStages], empty[2][kStages];
  };
  static_assert(sizeof(SharedStorage) <= 227 * 1024);
};

// Named barriers (hardware barrier 0 is __syncthreads').
enum NamedBarrier : uint32_t {
  kBlock = 1,     // + consumer, 128: its probabilities are stored, and whether scores exceed their references
  kExchange = 3,  // 256: each consumer has stored what the other must add; then again: has read the other's
};

}  // namespace dsa::sm90::prefill_few_heads
