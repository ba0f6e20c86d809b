// The exact selection from the list: the k best are those from some rank on, the cut.
//
// A histogram of the scores, fine around the cut if there is a sample, leaves few candidates of which it is not known
// whether they are chosen: those are compared with each other. Where scores are equal or nearly so these are many, and
// radix does it: digit for digit of the rank, from the top.
#pragma once

#include "histogram.cuh"
#include "order.cuh"

namespace dsa::topk {

__device__ __forceinline__ uint32_t list_length(SharedStorage const& s) { return min(s.listed, uint32_t(kCapacity)); }

// The rank from which on there are k candidates in the list, or all that are there if these are fewer. By radix.
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
      uint64_t const rank = i < length ? order.rank(s.list[i].value, s.list[i].position) : 0;
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

// f(there is one, candidate, number) for the thread's entries of the list and some behind it.
template <class F>
__device__ __forceinline__ void for_list(SharedStorage const& s, uint32_t length, F&& f) {
  static_assert(kListed % 2 == 0);
  constexpr int kAtOnce = kListed / 2;
#pragma unroll 1
  for (uint32_t begin = threadIdx.x; begin - threadIdx.x < length; begin += kAtOnce * kThreads) {
    Candidate c[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) c[u] = s.list[begin + u * kThreads];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) f(begin + u * kThreads < length, c[u], begin / kThreads + u);
  }
}

// Into what bins the list's scores are counted first.
struct Bins {
  uint32_t base = 0;  // key that none is below
  int shift = 32 - kDigitBits;

  __device__ __forceinline__ uint32_t of(uint32_t value) const {
    return min((key_of(value) - base) >> shift, uint32_t(kBins - 1));
  }
};

// Marks positions of a window in the bitmap.
__device__ __forceinline__ void mark(SharedStorage& s, bool marked, uint32_t bit) {
  uint32_t* const word = marked && bit < kWindow ? &s.bins[bit / 32] : &s.nowhere[threadIdx.x % 32];
  atomicOr(word, 1u << bit % 32);
}

template <class Format>
__device__ __forceinline__ void mark_from(SharedStorage& s, Order<Format> const& order, uint64_t cut, uint32_t window) {
  for_list(s, s.listed, [&](bool there, Candidate const& c, uint32_t) {
    mark(s, there && order.rank(c.value, c.position) >= cut, c.position - window);
  });
  __syncthreads();
}

// Marks the chosen positions of the first window, and returns the cut. The list has no gaps.
template <class Format>
__device__ __forceinline__ uint64_t select(SharedStorage& s, uint32_t k, Order<Format> const& order, Bins const& bins) {
  uint32_t const length = s.listed;
  uint64_t cut = order.least();
  if (length > k) {
    for_list(s, length, [&](bool there, Candidate const& c, uint32_t) {
      atomicAdd(there ? &s.bins[bins.of(c.value)] : &s.nowhere[threadIdx.x % 32], 1u);
    });
    if (threadIdx.x == 0) s.tied = 0;
    __syncthreads();
    Found found;
    find_bin(s, k, found);
    if (found.count <= kTies) {
      uint32_t tied = 0;
      for_list(s, length, [&](bool there, Candidate const& c, uint32_t number) {
        uint32_t const bin = bins.of(c.value);
        mark(s, there && bin > found.bin, c.position);
        if (there && bin == found.bin) tied |= 1u << number;
      });
      for (; tied != 0; tied &= tied - 1) {
        Candidate const c = s.list[(__ffs(tied) - 1) * kThreads + threadIdx.x];
        s.ties[atomicAdd(&s.tied, 1u)] = order.rank(c.value, c.position);
      }
      __syncthreads();
      constexpr int kLanes = kThreads / kTies;
      uint32_t const t = threadIdx.x / kLanes;
      uint64_t const mine = t < found.count ? s.ties[t] : 0;
      uint32_t better = 0;
#pragma unroll 1
      for (uint32_t i = threadIdx.x % kLanes; i < found.count; i += kLanes) better += s.ties[i] > mine;
#pragma unroll
      for (int d = 1; d < kLanes; d *= 2) better += __shfl_xor_sync(~0u, better, d);
      if (t < found.count && threadIdx.x % kLanes == 0 && better < found.need) {
        mark(s, true, order.position(mine));
        if (better == found.need - 1) s.cut = mine;
      }
      __syncthreads();
      return s.cut;
    }
    cut = find_cut(s, k, order);
  }
  mark_from(s, order, cut, 0);
  return cut;
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
      value = s.list[i].value;
      position = s.list[i].position;
      stays = order.rank(value, position) >= cut;
    }
    __syncthreads();
    if (stays) {
      uint32_t const at = atomicAdd(&s.kept, 1u);
      s.list[at] = {value, position};
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) s.listed = s.kept;
  return cut;
}

}  // namespace dsa::topk
