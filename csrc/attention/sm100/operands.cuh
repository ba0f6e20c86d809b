// Operands of the products, and products over several tiles. By the one thread that issues them.
#pragma once

#include "arch/sm100/rows64.cuh"
#include "tmem_map.h"

namespace dsa::sm100 {

constexpr int kStep = kUmmaK<bf16>;  // columns, or keys, a product
constexpr int kStepBytes = kStep * sizeof(bf16);
constexpr int kTileBytes = kTileElements * sizeof(bf16);

// The first step of a tile of rows. Others: umma_operand_at.
template <int kRows>
__device__ __forceinline__ uint64_t row_operand(bf16* tile) {
  auto const whole = make_tensor(make_smem_ptr(tile), RowTile<kRows>{});
  return umma_operand(local_tile(whole, Shape<Int<kRows>, Int<kStep>>{}, make_coord(_0{}, _0{})));
}
template <int kColumns>
__device__ __forceinline__ uint64_t value_operand(bf16* tiles) {
  auto const whole = make_tensor(make_smem_ptr(tiles), ValueTiles<kColumns>{});
  return umma_operand<Major::MN>(local_tile(whole, Shape<Int<kColumns>, Int<kStep>>{}, make_coord(_0{}, _0{})));
}

// Tiles of Q, from number kFirst on, to tensor memory.
template <int kCtas, int kFirst, int kCount>
__device__ __forceinline__ void copy_q_to_tmem(uint32_t tmem, bf16* tiles) {
  constexpr int kPieceElements = 8, kPieceBytes = 16, kPieceColumns = 4;
  static_assert(kFirst + kCount <= kTmemQTiles);
  uint64_t const from = row_operand<kBlockH>(tiles);
  CUTE_UNROLL
  for (int t = 0; t < kCount; ++t) CUTE_UNROLL
  for (int piece = 0; piece < kTileCols / kPieceElements; ++piece)
    copy_operand_to_tmem<kCtas>(tmem + kTmemQ + ((kFirst + t) * kTileCols / kPieceElements + piece) * kPieceColumns,
                                umma_operand_at(from, t * kTileBytes + piece * kPieceBytes));
}

// S (+)= Q K^T over kCount tiles of columns, which are number kFirst and up of Q's. keys: kKeys of the block's a CTA.
template <int kCtas, int kKeys, int kFirst, int kCount>
__device__ __forceinline__ void add_scores(uint32_t tmem, uint32_t to, bf16* q_tail, bf16* keys, bool accumulate) {
  uint32_t const instruction = umma_instruction<bf16, kCtas * kBlockH>(kCtas * kKeys);
  uint64_t const tail = row_operand<kBlockH>(q_tail), k = row_operand<kKeys>(keys);
  CUTE_UNROLL
  for (int t = 0; t < kCount; ++t) CUTE_UNROLL
  for (int step = 0; step < kTileCols / kStep; ++step) {
    uint64_t const b = umma_operand_at(k, t * kKeys * kTileCols * int(sizeof(bf16)) + step * kStepBytes);
    int const tile = kFirst + t;
    if (tile < kTmemQTiles)
      umma_64_rows_from_tmem<kCtas>(to, tmem + kTmemQ + (tile * kTileCols + step * kStep) / 2, b, instruction,
                                    accumulate || t > 0 || step > 0);
    else
      umma_64_rows<kCtas>(to, umma_operand_at(tail, (tile - kTmemQTiles) * kTileBytes + step * kStepBytes), b,
                          instruction, accumulate || t > 0 || step > 0);
  }
}

// 256 columns of O (+)= P V, of which each CTA has 256 / kCtas as tiles from `values` on.
template <int kCtas>
__device__ __forceinline__ void add_values(uint32_t to, bf16* probabilities, bf16* values, bool accumulate) {
  constexpr int kColumns = 256, kOwn = kColumns / kCtas;
  uint32_t const instruction = umma_instruction<bf16, kCtas * kBlockH, Major::K, Major::MN>(kColumns);
  uint64_t const p = row_operand<kBlockH>(probabilities), v = value_operand<kOwn>(values);
  CUTE_UNROLL
  for (int step = 0; step < kBlockK / kStep; ++step)
    umma_64_rows<kCtas>(to, umma_operand_at(p, step * kStepBytes),
                        umma_operand_at(v, step * kStep * kTileCols * int(sizeof(bf16))), instruction,
                        accumulate || step > 0);
}

}  // namespace dsa::sm100
