// Thread-block clusters: CTAs that run at the same time, wait for each other, and reach into each other's shared
// memory.
#pragma once

#include <cuda_runtime.h>

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

// For all threads of the cluster that have not exited: whoever has waited knows that all have arrived. No data is
// handed over, but for what a thread wrote before a fence_cluster() that it arrived after. (An arrival that releases
// would be a fence for the whole device, and every thread would wait for its earlier accesses.)
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ void fence_cluster() { asm volatile("fence.acq_rel.cluster;" ::: "memory"); }

// In the shared memory of a CTA that others of its cluster send to, once: each announces how many bytes it sends, and
// waits for nothing; the CTA waits until all have announced and everything has arrived.
class Inbox {
 public:
  // Another CTA's.
  class Remote {
   public:
    __device__ __forceinline__ Remote(uint32_t barrier, uint32_t rank) : barrier(in_cta(barrier, rank)), rank(rank) {}

    // By one thread of each CTA that sends.
    __device__ __forceinline__ void announce(uint32_t bytes) const {
      asm volatile("mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(barrier),
                   "r"(bytes)
                   : "memory");
    }

    // To the place in its shared memory that `place` is in one's own; aligned to 8 bytes.
    __device__ __forceinline__ void send(void const* place, uint64_t bytes) const {
      asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(
                       in_cta(shared_address(place), rank)),
                   "l"(bytes), "r"(barrier)
                   : "memory");
    }

   private:
    uint32_t barrier, rank;

    __device__ static __forceinline__ uint32_t in_cta(uint32_t address, uint32_t rank) {
      uint32_t there;
      asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
      return there;
    }
  };

  // By one thread, which then passes a fence_cluster() and a barrier of the cluster that the senders wait at.
  __device__ __forceinline__ void init(uint32_t senders) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(senders) : "memory");
  }

  __device__ __forceinline__ Remote of_cta(uint32_t rank) const { return {shared_address(&barrier), rank}; }

  __device__ __forceinline__ void wait() const {
    asm volatile(
        "{\n"
        ".reg .pred all;\n"
        "again:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 all, [%0], 0;\n"
        "@!all bra again;\n"
        "}" ::"r"(shared_address(&barrier))
        : "memory");
  }

 private:
  uint64_t barrier;

  __device__ static __forceinline__ uint32_t shared_address(void const* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
  }
};

}  // namespace dsa
