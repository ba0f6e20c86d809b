// Histograms of a digit in shared memory, and the search in them. All functions are for the whole CTA.
#pragma once

#include <cuda_runtime.h>

#include "config.h"

namespace dsa::topk {

__device__ __forceinline__ uint32_t warp_inclusive_sum(uint32_t x) {
#pragma unroll
  for (int d = 1; d < 32; d *= 2)
    asm volatile(
        "{\n"
        ".reg .pred below;\n"
        ".reg .b32 other;\n"
        "shfl.sync.up.b32 other|below, %0, %1, 0, 0xffffffff;\n"
        "@below add.u32 %0, %0, other;\n"
        "}"
        : "+r"(x)
        : "r"(d));
  return x;
}

// The sum of the threads before, and of all. A barrier must come before the next call.
__device__ __forceinline__ uint32_t exclusive_sum(SharedStorage& s, uint32_t x, uint32_t& total) {
  int const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t const inclusive = warp_inclusive_sum(x);
  if (lane == 31) s.warp_sums[warp] = inclusive;
  __syncthreads();
  static_assert(kWarps <= 32);
  uint32_t const sum = lane < kWarps ? s.warp_sums[lane] : 0;
  total = __reduce_add_sync(~0u, sum);
  return __reduce_add_sync(~0u, lane < warp ? sum : 0) + inclusive - x;
}

// Adds the bins of those lanes that take part; for a whole warp. Rows in which one bin has nearly everything are
// common, and adding to one address would make the lanes wait for each other: one lane does it for the first lane's
// bin.
__device__ __forceinline__ void count(SharedStorage& s, bool takes_part, uint32_t bin) {
  int const lane = threadIdx.x % 32;
  uint32_t const active = __ballot_sync(~0u, takes_part);
  if (active == 0) return;
  int const first = __ffs(active) - 1;
  uint32_t const bin_of_first = __shfl_sync(~0u, bin, first);
  bool const with_first = takes_part && bin == bin_of_first;
  uint32_t const same = __ballot_sync(~0u, with_first);
  if (lane == first)
    atomicAdd(&s.bins[bin], uint32_t(__popc(same)));
  else if (takes_part && !with_first)
    atomicAdd(&s.bins[bin], 1u);
}

// Searches from the top and leaves the bins zero. Returns how many there are in all: `found` has a meaning if these are
// `need` or more, and need >= 1. What was counted before a barrier is seen; the bins may be used again at once, as a
// barrier comes behind the zeros, but a barrier has to come before the next search.
__device__ __forceinline__ uint32_t find_bin(SharedStorage& s, uint32_t need, Found& found) {
  constexpr int kEach = kBins / kThreads;
  int const first = kBins - (int(threadIdx.x) + 1) * kEach;
  uint32_t counts[kEach], sums[kEach + 1];  // of a bin; of it and the thread's bins above
#pragma unroll
  for (int i = 0; i < kEach; i += 4) {
    uint4* const four = reinterpret_cast<uint4*>(&s.bins[first + i]);
    uint4 const c = *four;
    *four = {0, 0, 0, 0};
    counts[i] = c.x, counts[i + 1] = c.y, counts[i + 2] = c.z, counts[i + 3] = c.w;
  }
  sums[kEach] = 0;
#pragma unroll
  for (int i = kEach - 1; i >= 0; --i) sums[i] = sums[i + 1] + counts[i];
  uint32_t total;
  uint32_t const above = exclusive_sum(s, sums[0], total);
  if (above < need && need <= above + sums[0]) {
    Found f{};
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (need <= above + sums[i]) f = {uint32_t(first + i), need - above - sums[i + 1], counts[i]};
    s.found = f;
  }
  __syncthreads();
  found = s.found;
  return total;
}

}  // namespace dsa::topk
