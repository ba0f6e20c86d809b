// The result of a row: the positions from a cut on, ascending, mapped; -1 behind them. Work of the leading CTA.
#pragma once

#include "select.cuh"

namespace dsa::topk {

// What is returned for a position.
struct Mapping {
  int32_t const* pages;  // of the row's request
  int64_t pages_stride;
  uint32_t page_size;
  uint32_t offset;

  __device__ Mapping(TopkParams const& p, int row)
      : pages(p.page_size == 0 ? nullptr : p.block_table + row / p.rows_per_request * p.block_table_stride_request),
        pages_stride(p.block_table_stride_page),
        page_size(p.page_size),
        offset(p.offsets == nullptr ? 0 : p.offsets[row * p.offsets_stride]) {}

  __device__ __forceinline__ int32_t operator()(uint32_t position) const {
    if (page_size == 0) return int32_t(position + offset);
    int32_t const page = __ldg(pages + position / page_size * pages_stride);
    int64_t const slot = int64_t(page) * page_size + position % page_size;
    return page < 0 || slot > INT32_MAX ? -1 : int32_t(slot);
  }
};

__device__ __forceinline__ void emit_nothing(TopkParams const& p, int row) {
  for (int i = threadIdx.x; i < p.k; i += kThreads) p.out[row * p.out_stride_row + i] = -1;
}

// A bitmap puts them in order: a window of the row at a time.
template <class Format>
__device__ __forceinline__ void emit(SharedStorage& s, TopkParams const& p, int row, int length, uint64_t cut,
                                     Order<Format> const& order) {
  constexpr uint32_t kNowhere = ~0u;
  uint32_t const listed = list_length(s);
  uint32_t* const chosen = s.values;
  uint32_t done = 0;
#pragma unroll 1
  for (uint32_t window = 0; window < uint32_t(length); window += kWindow) {
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < listed; i += kThreads) {
      uint32_t position = s.positions[i];
      if (window == 0 && order.rank(s.values[i], position) < cut) s.positions[i] = position = kNowhere;
      uint32_t const bit = position - window;
      if (bit < kWindow) atomicOr(&s.bins[bit / 32], 1u << bit % 32);
    }
    __syncthreads();  // also: from here on `values` are `chosen`

    uint32_t const words = min((length - window + 31) / 32, uint32_t(kBins));
    uint32_t const each = (words + kThreads - 1) / kThreads, first = threadIdx.x * each;
    uint32_t const last = min(first + each, words);
    uint32_t mine = 0, total;
#pragma unroll 1
    for (uint32_t w = first; w < last; ++w) mine += __popc(s.bins[w]);
    uint32_t place = done + exclusive_sum(s, mine, total);
    done += total;
#pragma unroll 1
    for (uint32_t w = first; w < last; ++w) {
      uint32_t bits = s.bins[w];
      s.bins[w] = 0;
      for (; bits != 0; bits &= bits - 1) chosen[place++] = window + w * 32 + __ffs(bits) - 1;
    }
    __syncthreads();
  }

  Mapping const mapping(p, row);
  int32_t* const out = p.out + row * p.out_stride_row;
  for (uint32_t i = threadIdx.x; i < uint32_t(p.k); i += kThreads) out[i] = i < done ? mapping(chosen[i]) : -1;
}

}  // namespace dsa::topk
