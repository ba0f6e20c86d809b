// Writing into the shared memory of another CTA of the cluster, with its mbarriers. (arch/any/cluster.cuh has what
// needs none.)
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

__device__ __forceinline__ void arrive_remotely(uint32_t barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
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

// Until the phase of that parity is over; what other CTAs did before they arrived is seen then.
__device__ __forceinline__ void wait_for_remote(cutlass::arch::ClusterBarrier const& barrier, uint32_t parity) {
  uint32_t over;
  do {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(over)
        : "r"(cute::cast_smem_ptr_to_uint(&barrier)), "r"(parity)
        : "memory");
  } while (over == 0);
}

}  // namespace dsa::sm90
