// Tiles, shared memory and barriers of the sparse prefill kernel for few heads on Hopper. kernel.cuh draws the pipeline.
#pragma once

#include <cutlass/arch/barrier.h>

#include <cute/tensor.hpp>

#include "sparse_mla_prefill/sm90/work.h"

namespace dsa::sm90::prefill_few_heads {

using namespace cute;
using bf16 = cutlass::bfloat16_t;
using Barrier = cutlass::arch::ClusterTransactionBarrier;

constexpr int kTileCols = 64;                          // columns of one 128-byte swizzled tile
constexpr int kTileElements = kBlockK * kTileCols;     // a key tile's
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
template <>
struct Products<32> {
  using KQ = SM90_64x32x16_F32BF16BF16_SS<GMMA::Major::K, GMMA::Major::K>;
  using VP = SM90_64x32x16_F32BF16BF16_SS<GMMA::Major::MN, GMMA::Major::K>;
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

  // The gather is what bounds this kernel, so all the memory that is left is a ring of its stages, a few tiles each.
  static constexpr int kStageTiles = kTiles % 3 == 0 ? 3 : 2;
  static constexpr int kBlockStages = kTiles / kStageTiles;
  static constexpr int kStageElements = kStageTiles * kTileElements;
  static constexpr int kOtherBytes = kQBytes + 2 * kQTileElements * 2 + 5 * 1024 + 64 * kHeads;
  static constexpr int kStages = (227 * 1024 - kOtherBytes) / (kStageElements * int(sizeof(bf16)));
  static_assert(kStages >= 2 * kBlockStages);  // each consumer holds a block while the tile ends

  struct SharedStorage {
    alignas(1024) bf16 stage[kStages][kStageElements];
    alignas(1024) bf16 q[kTiles * kQTileElements];
    alignas(1024) bf16 p[2][kQTileElements < 1024 ? 1024 : kQTileElements];  // probabilities of each consumer's block
    float sum[2][4][kHeads];     // of each consumer's warps, at a tile's end
    float top[2][4][kHeads];     // and the largest raw scores; also a block's when references move
    float reference[2][kHeads];  // that each consumer's sums and outputs are relative to
    uint64_t valid[4];           // of block b in b % 4; bit i: key i counts
    // barrier    arrives                                                    waits
    // q_full     TMA (one thread + bytes)                                   consumers, before a tile's first K Q^T
    // q_empty    8 consumer warps, after their last K Q^T                   thread 0, before the next tile's Q
    // full[s]    128 producer threads' copies and 4 warps' parts of valid   the consumer of the block
    // empty[s]   4 warps of the consumer, after V^T P^T                     the producer
    Barrier q_full, q_empty, full[kStages], empty[kStages];
  };
  static_assert(sizeof(SharedStorage) <= 227 * 1024);
};

// Named barriers (hardware barrier 0 is __syncthreads').
enum NamedBarrier : uint32_t {
  kBlock = 1,      // + consumer, 128: its probabilities are stored, and one bit: some score exceeds its reference
  kExchange = 3,   // 256: each consumer has stored what the other must add; then again: has read the other's
};

}  // namespace dsa::sm90::prefill_few_heads
