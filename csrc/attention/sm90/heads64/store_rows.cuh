// Accumulators to shared memory.
#pragma once

#include "config.h"

namespace dsa::sm90::heads64 {

// Writes a warp's 16 rows of a 64 x 64 accumulator, as bf16 pairs, to a swizzled tile.
template <class TensorPacked>
__device__ __forceinline__ void store_rows(TensorPacked const& packed, bf16* tile, int lane, int warp) {
  int const row = warp * 16 + lane % 16;
  uint32_t const base = cast_smem_ptr_to_uint(tile) + row * 128;
  CUTE_UNROLL
  for (int k = 0; k < kTileCols / 16; ++k) {
    uint32_t const address = base + ((k * 2 + lane / 16) ^ (row % 8)) * 16;
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(packed(k * 4)),
                 "r"(packed(k * 4 + 1)), "r"(packed(k * 4 + 2)), "r"(packed(k * 4 + 3))
                 : "memory");
  }
}

}  // namespace dsa::sm90::heads64
