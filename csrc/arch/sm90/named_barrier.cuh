// A named barrier that carries one bit.
#pragma once

#include <cutlass/arch/barrier.h>

#include <cstdint>

namespace dsa::sm90 {

// All `threads` of barrier `id` (numbered as in cutlass::arch::NamedBarrier) wait for each other. True for all of them
// if `mine` is true for any. Unlike shared memory, the bit does not queue behind a gather's copies.
__device__ __forceinline__ bool arrive_and_any(uint32_t threads, uint32_t id, bool mine) {
  uint32_t any;
  asm volatile(
      "{\n.reg .pred p, q;\n"
      "setp.ne.u32 p, %1, 0;\n"
      "bar.red.or.pred q, %2, %3, p;\n"
      "selp.u32 %0, 1, 0, q;\n}"
      : "=r"(any)
      : "r"(uint32_t(mine)), "r"(id + cutlass::arch::NamedBarrier::ReservedNamedBarrierCount), "r"(threads)
      : "memory");
  return any;
}

}  // namespace dsa::sm90
