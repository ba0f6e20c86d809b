// The fill warps: -inf into what lies outside of a block's tiles. Within them, whoever computes an element writes it.
#pragma once

#include <cuda_bf16.h>

#include "indexer_logits/schedule.cuh"

namespace dsa::indexer {

constexpr int kFillColumns = 4096;  // of an item: all queries of a block, so many columns

// Writes [begin, end) of a row, 16 bytes at a time where they are aligned. By one warp.
template <class T>
__device__ __forceinline__ void fill_row(T* row, int begin, int end, T value, uint32_t word, int lane) {
  constexpr int kVector = 16 / sizeof(T);
  if (begin >= end) return;
  T* const first = row + begin;
  int const n = end - begin, to_aligned = int((16 - reinterpret_cast<uintptr_t>(first) % 16) % 16 / sizeof(T));
  int const head = min(to_aligned, n), vectors = (n - head) / kVector, tail = head + vectors * kVector;
  if (lane < head) first[lane] = value;
  auto* const body = reinterpret_cast<uint4*>(first + head);
  for (int i = lane; i < vectors; i += 32) body[i] = make_uint4(word, word, word, word);
  if (tail + lane < n) first[tail + lane] = value;
}

// Warp `warp` of kWarps of this CTA.
template <int kWarps, class Params>
__device__ __forceinline__ void fill(Params const& params, int warp) {
  IndexerQueries const& q = params.queries;
  int const lane = threadIdx.x % 32, chunks = (q.columns - 1) / kFillColumns + 1;
  int64_t const items = int64_t(params.blocks.count()) * chunks, step = int64_t(gridDim.x) * kWarps;
  for (int64_t item = int64_t(warp) * gridDim.x + blockIdx.x; item < items; item += step) {
    int const block = int(item / chunks), first = int(item % chunks) * kFillColumns;
    int const last = first + min(kFillColumns, q.columns - first);
    Tiles const tiles = params.blocks.tiles_by_warp(block, lane);
    // The last tile may reach past the last column.
    int const begin = min(tiles.begin * kTileKeys, last);
    int const end = tiles.end > q.columns / kTileKeys ? q.columns : tiles.end * kTileKeys;
    int const tokens = params.blocks.tokens_of(block);
    int64_t const out =
        params.blocks.batch_of(block) * q.out_stride_batch + params.blocks.first_token(block) * q.out_stride_token;
    for (int t = 0; t < tokens; ++t) {
      int64_t const row = out + t * q.out_stride_token;
      if (q.out_bf16) {
        auto* const p = static_cast<__nv_bfloat16*>(q.out) + row;
        fill_row(p, first, begin, __ushort_as_bfloat16(0xff80), 0xff80ff80, lane);
        fill_row(p, max(first, end), last, __ushort_as_bfloat16(0xff80), 0xff80ff80, lane);
      } else {
        auto* const p = static_cast<float*>(q.out) + row;
        fill_row(p, first, begin, __uint_as_float(0xff800000), 0xff800000, lane);
        fill_row(p, max(first, end), last, __uint_as_float(0xff800000), 0xff800000, lane);
      }
    }
  }
}

}  // namespace dsa::indexer
