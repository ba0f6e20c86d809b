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

// Multiplies the row by `scale` and writes it as bf16 to `row` (16-byte aligned), unless that is null. By a whole warp.
__device__ __forceinline__ void write_output(uint32_t tmem, float scale, bf16* row) {
#pragma unroll 2
  for (int column = 0; column < kHalfV; column += kOutputChunk) {
    uint32_t o[kOutputChunk];
    load_tmem(tmem + column, o);
    wait_for_tmem_loads(o);
    if (row == nullptr) continue;
    CUTE_UNROLL
    for (int i = 0; i < kOutputChunk; i += 8) {
      uint32_t packed[4];
      CUTE_UNROLL
      for (int j = 0; j < 4; ++j)
        packed[j] = pack_bf16(__uint_as_float(o[i + 2 * j]) * scale, __uint_as_float(o[i + 2 * j + 1]) * scale);
      *reinterpret_cast<uint4*>(row + column + i) = make_uint4(packed[0], packed[1], packed[2], packed[3]);
    }
  }
}

}  // namespace dsa::sm100
