// A first threshold for long rows, from a sample: above it lie k candidates, very likely, and few more. It is a hint:
// if fewer turn out to be above it, the row is read again without one.
#pragma once

#include "histogram.cuh"
#include "row.cuh"

namespace dsa::topk {

// Groups of four vectors, 64 bytes, evenly spread over the row. A row with a sample has more than kCapacity scores.
template <class Format>
struct Sample {
  static constexpr int kGroup = 4;
  static_assert(kCapacity / 8 - 2 >= kThreads, "rows that are sampled have as many vectors");

  uint4 vectors[kVectors];
  int groups, rounds;

  __device__ __forceinline__ void load(Row<Format> const& row) {
    int const inner = row.vectors() - 2;  // the first and the last may be in the row in part
    int const wanted = min(max(inner / kSampleEvery, kThreads), kThreads * kVectors);
    groups = wanted / kGroup;
    rounds = (wanted + kThreads - 1) / kThreads;
    float const apart = float(inner / kGroup) / float(groups);
#pragma unroll
    for (int u = 0; u < kVectors; ++u) {
      int const i = u * kThreads + threadIdx.x, group = i / kGroup;
      if (group < groups) vectors[u] = row.load(1 + int(float(group) * apart) * kGroup + i % kGroup);
    }
  }

  // The threshold. For the whole CTA, whose bins are zero.
  __device__ __forceinline__ float threshold(SharedStorage& s, int length, int k) const {
#pragma unroll
    for (int u = 0; u < kVectors; ++u) {
      if (u >= rounds) break;
      bool const loaded = (u * kThreads + int(threadIdx.x)) / kGroup < groups;
#pragma unroll
      for (int i = 0; i < Format::kPerVector; ++i) {
        uint32_t const key = loaded ? ordered(Format::get(vectors[u], i)) : 0;
        count(s, key != 0, key >> (32 - kDigitBits));
      }
    }
    __syncthreads();
    // Of so many in the sample k are expected; their number varies by its root.
    float const share = float(groups * kGroup * Format::kPerVector) / float(length), expected = float(k) * share;
    uint32_t const wanted = uint32_t(expected + 4.0f * sqrtf(expected) + 8.0f);
    Found found;
    if (find_bin(s, wanted, found) < wanted) return kNothing;
    return below(found.bin << (32 - kDigitBits));
  }

 private:
  // The greatest score less than those of a bin, of which `edge` is the least key.
  __device__ static float below(uint32_t edge) {
    constexpr uint32_t kKeyOfNegativeZero = kSign - 1;
    uint32_t key = edge - 1;
    if (key == kKeyOfNegativeZero) --key;  // it is not less than zero
    return score_of(key);
  }
};

}  // namespace dsa::topk
