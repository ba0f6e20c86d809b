// A row's candidates, and how their scores are read: in vectors at 16-byte boundaries, each once, but never a byte that
// is not one of theirs.
#pragma once

#include <utility>

#include "arch/any/async_copy.cuh"
#include "order.cuh"

namespace dsa::topk {

// What the block table can map.
__device__ __forceinline__ int mapped_length(TopkParams const& p) {
  return p.page_size == 0 ? p.columns : int(min(int64_t(p.pages) * p.page_size, int64_t(p.columns)));
}

template <class Format>
struct Row {
  using Element = typename Format::Element;
  static constexpr int kPer = Format::kPerVector;

  void const* scores;  // of position 0
  int length;
  int lead;  // elements of the first vector that lie before the row

  __device__ __forceinline__ Row(TopkParams const& p, int row) {
    int const start = p.row_starts == nullptr ? 0 : min(max(p.row_starts[row * p.row_starts_stride], 0), p.columns);
    length = min(p.columns - start, mapped_length(p));
    if (p.lengths != nullptr) length = min(length, max(p.lengths[row * p.lengths_stride], 0));
    scores = static_cast<Element const*>(p.logits) + row * p.stride_row + start;
    lead = int(reinterpret_cast<uintptr_t>(scores) % kVectorBytes / sizeof(Element));
  }

  __device__ __forceinline__ uint32_t end() const { return uint32_t(lead) + uint32_t(length); }

  // Those that have something of the row; those before this one lie in it, but for the first.
  __device__ __forceinline__ int vectors() const { return int((end() + (kPer - 1)) / kPer); }
  __device__ __forceinline__ int whole_vectors() const { return int(end() / kPer); }

  // Of a vector's first element. Wraps where that lies before the row.
  __device__ __forceinline__ uint32_t position(int vector) const { return uint32_t(vector) * kPer - uint32_t(lead); }

  __device__ __forceinline__ uint4 const* at(int vector) const {
    return reinterpret_cast<uint4 const*>(static_cast<Element const*>(scores) - lead) + vector;
  }

  // A vector that lies in the row.
  __device__ __forceinline__ uint4 load(int vector) const { return __ldcs(at(vector)); }

  // Any vector. What is outside of the row reads as kNothing.
  __device__ __forceinline__ uint4 load_part(int vector) const {
    constexpr uint32_t kWord = Format::kNothingWord, kMask = sizeof(Element) == 4 ? ~0u : 0xffffu;
    constexpr int kPerWord = kPer / 4;
    uint32_t words[4] = {kWord, kWord, kWord, kWord};
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      uint32_t const at = position(vector) + i;
      if (at >= uint32_t(length)) continue;
      uint32_t const bits = static_cast<Bits const*>(scores)[at];
      int const shift = 16 * (i % kPerWord);
      words[i / kPerWord] = (words[i / kPerWord] & ~(kMask << shift)) | bits << shift;
    }
    return {words[0], words[1], words[2], words[3]};
  }

 private:
  using Bits = std::conditional_t<sizeof(Element) == 4, uint32_t, uint16_t>;
};

// Vectors of a thread, in a row kApart from each other: for a warp they are contiguous.
template <class Format, int kCount>
struct Vectors {
  static constexpr int kApart = 32;
  uint4 v[kCount];

  // f(bits of the score, position, number) for each; `first` is the position of the first, and wraps where it is
  // outside.
  template <class F>
  __device__ __forceinline__ void for_each(uint32_t first, F&& f) const {
#pragma unroll
    for (int u = 0; u < kCount; ++u)
#pragma unroll
      for (int i = 0; i < Format::kPerVector; ++i) {
        constexpr int kPer = Format::kPerVector;
        f(Format::get(v[u], i), first + u * kApart * kPer + i, u * kPer + i);
      }
  }
};

// What a thread looks at in one round.
template <class Format>
using Batch = Vectors<Format, kVectors>;

// Starts to bring a batch into the thread's places in shared memory.
template <class Format>
__device__ __forceinline__ void fetch(SharedStorage& s, Row<Format> const& row, int first) {
  constexpr int kApart = Batch<Format>::kApart;
  if (first >= int(row.lead > 0) && first + (kVectors - 1) * kApart < row.whole_vectors()) {
    constexpr int kFrom = kApart * kVectorBytes, kTo = kThreads * kVectorBytes;
    uint4 const* const from = row.at(first);
    auto const copy = [&]<int... u>(std::integer_sequence<int, u...>) {
      (copy_async<u * kFrom, u * kTo>(&s.incoming[0][threadIdx.x], from), ...);
    };
    copy(std::make_integer_sequence<int, kVectors>());
  } else {
#pragma unroll 1
    for (int u = 0; u < kVectors; ++u) s.incoming[u][threadIdx.x] = row.load_part(first + u * kApart);
  }
}

template <class Format>
__device__ __forceinline__ Batch<Format> fetched(SharedStorage const& s) {
  Batch<Format> batch;
  wait_for_copies();
#pragma unroll
  for (int u = 0; u < kVectors; ++u) batch.v[u] = s.incoming[u][threadIdx.x];
  return batch;
}

}  // namespace dsa::topk
