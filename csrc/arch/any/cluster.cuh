// Thread-block clusters: CTAs that run at the same time, wait for each other, and reach into each other's shared
// memory.
#pragma once

#include <cstdint>

namespace dsa {

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ uint32_t cluster_size() {
  uint32_t size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// The same place in the shared memory of the cluster's CTA `rank`.
template <class T>
__device__ __forceinline__ T* in_cta(T* shared, uint32_t rank) {
  uint64_t address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(shared), "r"(rank));
  return reinterpret_cast<T*>(address);
}

// A barrier in two halves, for all threads of the cluster that have not exited. What they wrote before they arrived is
// seen by all after they have waited. Arriving is a fence for the whole device in machine code: a thread waits for its
// earlier accesses there.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

}  // namespace dsa
