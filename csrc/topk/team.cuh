// The CTAs of a row: one, or a cluster. The first leads: the others' lists go into its own, and it alone selects and
// writes.
#pragma once

#include "arch/any/cluster.cuh"
#include "config.h"

namespace dsa::topk {

template <bool kCluster>
struct Team;

template <>
struct Team<false> {
  __device__ __forceinline__ uint32_t rank() const { return 0; }
  __device__ __forceinline__ uint32_t size() const { return 1; }
  __device__ __forceinline__ void start(SharedStorage& s) const {
    if (threadIdx.x == 0) s.listed = 0;
  }
  __device__ __forceinline__ bool gather(SharedStorage&) const { return true; }
};

template <>
struct Team<true> {
  __device__ __forceinline__ uint32_t rank() const { return cluster_rank(); }
  __device__ __forceinline__ uint32_t size() const { return cluster_size(); }

  // Before anything is loaded: arriving takes until then.
  __device__ __forceinline__ void start(SharedStorage& s) const {
    if (threadIdx.x == 0) s.listed = 0;
    __syncwarp();
    cluster_arrive();
  }

  // After a barrier behind the last candidate. False for the CTAs that have no more to do. A list that has no room for
  // all of them counts to more than kCapacity.
  __device__ __forceinline__ bool gather(SharedStorage& s) const {
    cluster_wait();  // for a start long ago
    if (rank() == 0) {
      cluster_arrive();
      cluster_wait();
      return true;
    }
    uint32_t const n = s.listed;
    if (threadIdx.x == 0) s.kept = atomicAdd(in_cta(&s.listed, 0), n);
    __syncthreads();
    uint32_t const place = s.kept;
    if (place + n <= kCapacity) {
      Candidate* const to = in_cta(s.list + place, 0);
#pragma unroll 1
      for (uint32_t i = threadIdx.x; i < n; i += kThreads) to[i] = s.list[i];
    }
    cluster_arrive();
    return false;
  }
};

}  // namespace dsa::topk
