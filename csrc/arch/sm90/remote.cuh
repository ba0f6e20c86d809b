// Writing into the shared memory of another CTA of the cluster, with its mbarriers. (arch/any/cluster.cuh has what
// needs none.) Who waits for them does so as for the own CTA's: an acquire for the cluster would also empty L1.
#pragma once

#include <cutlass/arch/barrier.h>
#include <cute/arch/util.hpp>

namespace dsa::sm90 {

// An address in the cluster's shared memory: this CTA's `shared`, in the CTA `rank`.
__device__ __forceinline__ uint32_t remote_address(void const* shared, uint32_t rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(cute::cast_smem_ptr_to_uint(shared)), "r"(rank));
  return address;
}

// Says that this thread has read what others may write now. (As in CUTLASS, a release within the CTA. One for the
// cluster is a fence for the whole device in machine code, 1500 to 2000 cycles long.)
__device__ __forceinline__ void arrive_remotely(uint32_t barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// An asynchronous store; the barrier, in the same CTA as `address`, receives their bytes.
__device__ __forceinline__ void store_remotely(uint32_t address, uint4 v, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
      "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier)
      : "memory");
}

// An asynchronous copy of this CTA's memory, in multiples of 16 bytes. It must live until the other CTA has them.
__device__ __forceinline__ void copy_remotely(uint32_t address, void const* from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(address),
      "r"(cute::cast_smem_ptr_to_uint(from)), "r"(bytes), "r"(barrier)
      : "memory");
}

// The cluster's barrier (arch/any/cluster.cuh), to say only that the thread has come: no fence.
__device__ __forceinline__ void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

}  // namespace dsa::sm90
