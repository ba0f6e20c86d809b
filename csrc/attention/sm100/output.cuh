// The output accumulator, in tensor memory: this thread's row (lane), half of the value columns in 256 columns.
#pragma once

#include "arch/sm100/tmem.cuh"
#include "attention/softmax_math.cuh"
#include "tiles.h"

namespace dsa::sm100 {

constexpr int kOutputChunk = 32;  // columns at once in registers

// O moves to a new reference. By a whole warp, after the products that wrote O and before those that add to it.
__device__ __forceinline__ void rescale_output(uint32_t tmem, float factor) {
#pragma unroll 2
  for (int column = 0; column < kHalfV; column += kOutputChunk) {
    uint32_t o[kOutputChunk];
    load_tmem(tmem + column, o);
    wait_for_tmem_loads(o);
    CUTE_UNROLL
    for (uint32_t& x : o) x = __float_as_uint(__uint_as_float(x) * factor);
    store_tmem(tmem + column, o);
  }
  wait_for_tmem_stores();
}

// Columns of the accumulator come in runs of kRun value columns of this thread's, the other half's between them.
template <int kRun>
__device__ __forceinline__ constexpr int value_column(int column, int half) {
  return column / kRun * 2 * kRun + half * kRun + column % kRun;
}

// Piece i (16 bytes) of this lane's goes to lane i of its four, which gets piece i of its own from each of them.
__device__ __forceinline__ void transpose_pieces(uint4 (&pieces)[4], int lane) {
  CUTE_UNROLL
  for (int bit = 1; bit <= 2; bit *= 2) {
    bool const upper = lane & bit;
    CUTE_UNROLL
    for (int n = 0; n < 2; ++n) {
      int const low = bit == 1 ? 2 * n : n, high = low + bit;
      uint4 away = upper ? pieces[low] : pieces[high];
      away = make_uint4(__shfl_xor_sync(~0u, away.x, bit), __shfl_xor_sync(~0u, away.y, bit),
                        __shfl_xor_sync(~0u, away.z, bit), __shfl_xor_sync(~0u, away.w, bit));
      if (upper)
        pieces[low] = away;
      else
        pieces[high] = away;
    }
  }
}

// 16 bytes of output.
__device__ __forceinline__ uint4 output_piece(uint32_t const* o, float scale, bf16) {
  uint32_t packed[4];
  CUTE_UNROLL
  for (int i = 0; i < 4; ++i)
    packed[i] = pack_bf16(__uint_as_float(o[2 * i]) * scale, __uint_as_float(o[2 * i + 1]) * scale);
  return make_uint4(packed[0], packed[1], packed[2], packed[3]);
}
__device__ __forceinline__ uint4 output_piece(uint32_t const* o, float scale, float) {
  uint32_t scaled[4];
  CUTE_UNROLL
  for (int i = 0; i < 4; ++i) scaled[i] = __float_as_uint(__uint_as_float(o[i]) * scale);
  return make_uint4(scaled[0], scaled[1], scaled[2], scaled[3]);
}

// Multiplies each lane's row by its `scale` and writes the first `rows` of the warp's 32, as bf16 or fp32. `out`: the
// warp's first row; strides in elements, everything 16-byte aligned. Four lanes write 64 bytes of a row together:
// sectors are whole.
template <int kRun, class Element>
__device__ __forceinline__ void write_output(uint32_t tmem, float scale, Element* out, int64_t row_stride, int rows,
                                             int half, int lane) {
  constexpr int kPiece = 16 / sizeof(Element), kPieces = 4 * kPiece;
#pragma unroll 1
  for (int column = 0; column < kHalfV; column += kOutputChunk) {
    uint32_t o[kOutputChunk];
    load_tmem(tmem + column, o);
    wait_for_tmem_loads(o);
    CUTE_UNROLL
    for (int some = 0; some < kOutputChunk; some += kPieces) {
      uint4 pieces[4];
      CUTE_UNROLL
      for (int i = 0; i < 4; ++i) pieces[i] = output_piece(o + some + i * kPiece, scale, Element{});
      transpose_pieces(pieces, lane);
      Element* const to = out + value_column<kRun>(column, half) + some + lane % 4 * kPiece;
      CUTE_UNROLL
      for (int i = 0; i < 4; ++i) {
        int const row = lane / 4 * 4 + i;
        if (row < rows) *reinterpret_cast<uint4*>(to + row * row_stride) = pieces[i];
      }
    }
  }
}

}  // namespace dsa::sm100
