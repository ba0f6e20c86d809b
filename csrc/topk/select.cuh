// The exact selection from the list, by radix: digit for digit of the rank, from the top, until the k best are those
// from some rank on. Work of the leading CTA.
#pragma once

#include "histogram.cuh"
#include "order.cuh"

namespace dsa::topk {

__device__ __forceinline__ uint32_t list_length(SharedStorage const& s) { return min(s.listed, uint32_t(kCapacity)); }

// The rank from which on there are k candidates in the list, or all that are there if these are fewer.
template <class Format>
__device__ __forceinline__ uint64_t find_cut(SharedStorage& s, uint32_t k, Order<Format> const& order) {
  uint32_t const length = list_length(s);
  uint32_t need = k;
  uint64_t prefix = 0;  // of the ranks among which the cut is
  int low = order.bits();
#pragma unroll 1
  for (bool first = true;; first = false) {
    int const high = low, width = min(kDigitBits, low);
    low -= width;
#pragma unroll 1
    for (uint32_t begin = threadIdx.x / 32 * 32; begin < length; begin += kThreads) {
      uint32_t const i = begin + threadIdx.x % 32;
      uint64_t const rank = i < length ? order.rank(s.values[i], s.positions[i]) : 0;
      count(s, rank != 0 && rank >> high == prefix, uint32_t(rank >> low) & ((1u << width) - 1));
    }
    __syncthreads();
    Found found;
    uint32_t const total = find_bin(s, need, found);
    if (first && total < k) return order.least();
    prefix = prefix << width | found.bin;
    need = found.need;
    if (need == found.count || low == 0) return prefix << low;
    // The next search writes `found` behind a barrier that comes after every thread's reading it here.
  }
}

// Leaves the k best in a list that has no room for a warp's candidates and therefore holds k. Returns their cut.
template <class Format>
__device__ __forceinline__ uint64_t keep_best(SharedStorage& s, uint32_t k, Order<Format> const& order) {
  uint32_t const length = list_length(s);
  uint64_t const cut = find_cut(s, k, order);
  if (threadIdx.x == 0) s.kept = 0;
  // What stays moves to the front. A place is written after its own entry, and all before it, have been read.
#pragma unroll 1
  for (uint32_t begin = 0; begin < length; begin += kThreads) {
    uint32_t const i = begin + threadIdx.x;
    uint32_t value = 0, position = 0;
    bool stays = false;
    if (i < length) {
      value = s.values[i];
      position = s.positions[i];
      stays = order.rank(value, position) >= cut;
    }
    __syncthreads();
    if (stays) {
      uint32_t const at = atomicAdd(&s.kept, 1u);
      s.values[at] = value;
      s.positions[at] = position;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) s.listed = s.kept;
  return cut;
}

}  // namespace dsa::topk
