// A first threshold for long rows, from a sample: above it lie k candidates, very likely, and few more. It is a hint:
// if fewer turn out to be above it, the row is read again without one.
#pragma once

#include "histogram.cuh"
#include "row.cuh"

namespace dsa::topk {

// Groups of four vectors, 64 bytes, evenly spread over the row. A row with a sample has more than kCapacity scores.
template <class Format>
struct Sample {
  static constexpr int kGroup = 4, kMost = 4;
  static_assert(kCapacity / 8 - 2 >= kThreads, "rows that are sampled have as many vectors");

  uint4 vectors[kMost];
  int rounds;       // vectors of a thread
  uint32_t wanted;  // scores of the sample that the threshold is to let pass

  __device__ __forceinline__ void load(Row<Format> const& row, int k) {
    uint32_t const inner = row.vectors() - 2;  // the first and the last may be in the row in part
    rounds = inner < 64 * kThreads - 2 ? 1 : inner < 128 * kThreads - 2 ? 2 : kMost;
    uint32_t const groups = uint32_t(rounds) * (kThreads / kGroup);
    float const apart = __fdividef(float(inner / kGroup), float(groups));
#pragma unroll
    for (int u = 0; u < kMost; ++u) {
      uint32_t const i = u * kThreads + threadIdx.x;
      if (u < rounds) vectors[u] = row.load(1 + int(float(i / kGroup) * apart) * kGroup + i % kGroup);
    }
    // Of so many in the sample k are expected; their number varies by its root.
    constexpr float kScores = kThreads * Format::kPerVector;
    float const expected = __fdividef(float(k) * float(rounds) * kScores, float(row.length));
    wanted = uint32_t(expected + 4.0f * expected * rsqrtf(expected) + 8.0f);
    asm volatile("" : "+r"(wanted));  // now, while the loads are on their way
  }

  // The threshold. For the whole CTA, whose bins are zero.
  __device__ __forceinline__ float threshold(SharedStorage& s) const {
    uint32_t greatest = 0;
    for_each([&](uint32_t key) {
      greatest = max(greatest, key);
      atomicAdd(key != 0 ? &s.bins[key >> (32 - kDigitBits)] : &s.nowhere[threadIdx.x % 32], 1u);
    });
    greatest = __reduce_max_sync(~0u, greatest);
    if (threadIdx.x % 32 == 0) atomicMax(&s.greatest, greatest);
    __syncthreads();
    Found found;
    if (find_bin(s, wanted, found) < wanted) return kNothing;
    uint32_t edge = found.bin << (32 - kDigitBits);
    if (found.count - found.need > wanted / 2) {  // too coarse: its next digit
      for_each([&](uint32_t key) {
        if ((key ^ edge) >> (32 - kDigitBits) == 0) atomicAdd(&s.bins[key >> (32 - 2 * kDigitBits) & (kBins - 1)], 1u);
      });
      __syncthreads();
      find_bin(s, found.need, found);
      edge |= found.bin << (32 - 2 * kDigitBits);
    }
    return below(edge);
  }

 private:
  // f(key) for each score of the thread's.
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) const {
#pragma unroll
    for (int u = 0; u < kMost; ++u) {
      if (u >= rounds) break;
#pragma unroll
      for (int i = 0; i < Format::kPerVector; ++i) f(ordered(Format::get(vectors[u], i)));
    }
  }

  // The greatest score less than those of a bin, of which `edge` is the least key.
  __device__ static float below(uint32_t edge) {
    constexpr uint32_t kKeyOfNegativeZero = kSign - 1;
    uint32_t key = edge - 1;
    if (key == kKeyOfNegativeZero) --key;  // it is not less than zero
    return score_of(key);
  }
};

}  // namespace dsa::topk
