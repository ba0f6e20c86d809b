// Moving token rows from global to shared memory, 16 bytes a thread (cp.async).
//
// On sm_90 this is the fastest gather of rows of about 1 KB: bulk copies of one row reach half its rate and cannot
// swizzle, tensor-map boxes of one row a tenth (docs/design-notes.md).
#pragma once

#include <cutlass/arch/barrier.h>

#include <cstdint>

namespace dsa::sm90 {

// Copies 16 bytes, or writes 16 zero bytes and reads nothing if `valid` is false.
__device__ __forceinline__ void gather_16B(uint32_t smem_dst, void const* src, bool valid) {
  int const bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(smem_dst), "l"(src), "r"(bytes)
               : "memory");
}

// The barrier receives this thread's arrival once all its copies so far have landed (its count includes the thread).
__device__ __forceinline__ void arrive_after_gather(uint64_t& barrier) {
  cutlass::arch::cpasync_barrier_arrive_noinc(&barrier);
}

}  // namespace dsa::sm90
