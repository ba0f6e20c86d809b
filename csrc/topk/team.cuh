// The CTAs of a row: one, or a cluster. The first leads: it owns the list, selects and writes.
#pragma once

#include "arch/any/cluster.cuh"
#include "config.h"

namespace dsa::topk {

template <bool kCluster>
struct Team;

template <>
struct Team<false> {
  __device__ uint32_t rank() const { return 0; }
  __device__ uint32_t size() const { return 1; }
  __device__ bool leads() const { return true; }
  __device__ SharedStorage& of(SharedStorage& own, uint32_t) const { return own; }
  __device__ void sync() const { __syncthreads(); }
};

template <>
struct Team<true> {
  __device__ uint32_t rank() const { return cluster_rank(); }
  __device__ uint32_t size() const { return cluster_size(); }
  __device__ bool leads() const { return rank() == 0; }
  __device__ SharedStorage& of(SharedStorage& own, uint32_t rank) const { return *in_cta(&own, rank); }
  __device__ void sync() const { cluster_sync(); }
};

}  // namespace dsa::topk
