// The result of a row: the positions from a cut on, ascending, mapped; -1 behind them. Work of the leading CTA.
#pragma once

#include "select.cuh"

namespace dsa::topk {

// What is returned for a position.
struct Shift {
  uint32_t offset;

  __device__ Shift(TopkParams const& p, int row)
      : offset(p.offsets == nullptr ? 0 : p.offsets[row * p.offsets_stride]) {}

  __device__ __forceinline__ int32_t operator()(uint32_t position) const { return int32_t(position + offset); }
};

struct Slots {
  int32_t const* pages;  // of the row's request
  int64_t pages_stride;
  uint32_t page_size;

  __device__ Slots(TopkParams const& p, int row)
      : pages(p.block_table + row / p.rows_per_request * p.block_table_stride_request),
        pages_stride(p.block_table_stride_page),
        page_size(p.page_size) {}

  __device__ __forceinline__ int32_t operator()(uint32_t position) const {
    int32_t const page = __ldg(pages + position / page_size * pages_stride);
    int64_t const slot = int64_t(page) * page_size + position % page_size;
    return page < 0 || slot > INT32_MAX ? -1 : int32_t(slot);
  }
};

__device__ __forceinline__ void emit_nothing(TopkParams const& p, int row) {
  for (int i = threadIdx.x; i < p.k; i += kThreads) p.out[row * p.out_stride_row + i] = -1;
}

// Positions that are marked go to their places, whoever has them: entries behind the list do no harm.
template <int kAtOnce, class Mapping>
__device__ __forceinline__ void write(SharedStorage const& s, uint32_t listed, uint32_t window, int32_t* out,
                                      Mapping const& mapping) {
#pragma unroll 1
  for (uint32_t begin = threadIdx.x; begin - threadIdx.x < listed; begin += kAtOnce * kThreads) {
    uint32_t bits[kAtOnce], words[kAtOnce], places[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) bits[u] = s.list[begin + u * kThreads].position - window;
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      uint32_t const word = min(bits[u] / 32, uint32_t(kBins));
      words[u] = s.bins[word];
      places[u] = s.places[word];
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      uint32_t const bit = 1u << bits[u] % 32;
      if (words[u] & bit) out[places[u] + __popc(words[u] & (bit - 1))] = mapping(bits[u] + window);
    }
  }
}

// A bitmap puts them in order, a window of the row at a time; the first has been marked.
template <class Format>
__device__ __forceinline__ void emit(SharedStorage& s, TopkParams const& p, int row, int length, uint64_t cut,
                                     Order<Format> const& order) {
  constexpr int kEach = kBins / 4 / kThreads;
  uint32_t const listed = s.listed;
  int32_t* const out = p.out + row * p.out_stride_row;
  uint32_t done = 0;
#pragma unroll 1
  for (uint32_t window = 0;;) {
    // How many stand before each word.
    uint32_t const fours = (min(length - window, uint32_t(kWindow)) + 127) / 128;
    uint32_t const each = (fours + kThreads - 1) / kThreads, first = threadIdx.x * each;
    uint4 counts[kEach];
    uint32_t mine = 0, total;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (i >= each) break;
      uint4 const w = reinterpret_cast<uint4 const*>(s.bins)[first + i];
      counts[i] = {uint32_t(__popc(w.x)), uint32_t(__popc(w.y)), uint32_t(__popc(w.z)), uint32_t(__popc(w.w))};
      mine += counts[i].x + counts[i].y + counts[i].z + counts[i].w;
    }
    uint32_t place = done + exclusive_sum(s, mine, total);
    done += total;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (i >= each) break;
      uint4 const c = counts[i];
      reinterpret_cast<uint4*>(s.places)[first + i] = {place, place + c.x, place + c.x + c.y, place + c.x + c.y + c.z};
      place += c.x + c.y + c.z + c.w;
    }
    __syncthreads();
    if (p.page_size == 0)
      write<kListed / 2>(s, listed, window, out, Shift(p, row));
    else
      write<1>(s, listed, window, out, Slots(p, row));
    window += kWindow;
    if (window >= uint32_t(length)) break;
    __syncthreads();
    for (int i = threadIdx.x; i < kBins; i += kThreads) s.bins[i] = 0;
    __syncthreads();
    mark_from(s, order, cut, window);
  }
  for (uint32_t i = done + threadIdx.x; i < uint32_t(p.k); i += kThreads) out[i] = -1;
}

}  // namespace dsa::topk
