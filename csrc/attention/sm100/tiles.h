// Blocks, tiles and tensor maps that the attention kernels on Blackwell share.
#pragma once

#include <cuda.h>
#include <cutlass/arch/barrier.h>

#include <cute/atom/mma_traits_sm100.hpp>
#include <cute/tensor.hpp>

namespace dsa::sm100 {

using namespace cute;
using bf16 = cutlass::bfloat16_t;
using Barrier = cutlass::arch::ClusterTransactionBarrier;

constexpr int kBlockH = 64;    // heads a CTA: rows of both products
constexpr int kBlockK = 64;    // keys a block
constexpr int kTileCols = 64;  // columns of one 128-byte swizzled tile
constexpr int kTileElements = 64 * kTileCols;
constexpr int kDV = 512;
constexpr int kHalfV = kDV / 2;  // value columns of one softmax thread

// Tiles of kRows rows one after the other, columns innermost: an operand whose rows are rows of memory.
template <int kRows>
using RowTile = decltype(tile_to_shape(UMMA::Layout_K_SW128_Atom<bf16>{}, Shape<Int<kRows>, Int<kTileCols>>{}));
// Tiles of kBlockK keys as value columns [kColumns] x keys [64]: an operand whose rows are columns of memory.
template <int kColumns>
using ValueTiles =
    decltype(tile_to_shape(UMMA::Layout_MN_SW128_Atom<bf16>{}, Shape<Int<kColumns>, Int<kBlockK>>{}, Step<_2, _1>{}));

// A place in a ring of buffers, and the phase that its barriers are in: `phase` of the full ones, `phase ^ 1` of the
// empty ones, which are passed in the first round.
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t phase = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

}  // namespace dsa::sm100
