// topk_indices, torch-free: what op.cpp, or another op, hands to the launcher. One implementation for every
// architecture.
#pragma once

#include <cstdint>

namespace dsa {

constexpr int kMaxTopk = 4096;

// Row r's candidates are the columns [start, start + length), where start is row_starts[r] (0 without) within
// [0, columns] and length is lengths[r] (to the row's end without), but not beyond the row's end, nor beyond what the
// block table maps. Their positions count from start.
struct TopkParams {
  void const* logits;  // fp32 or bf16 [rows, columns], elements aligned to their size, rows contiguous
  bool bf16;
  int64_t stride_row;
  int rows, columns, k;  // 1 <= k <= kMaxTopk

  int32_t const *row_starts, *lengths;  // [rows] or null
  int64_t row_starts_stride, lengths_stride;

  // What is returned for a position: with offsets, it plus the row's offset; with a block table, its slot. At most one
  // of the two is there.
  int32_t const* offsets;  // [rows] or null
  int64_t offsets_stride;
  int32_t const* block_table;  // [requests, pages]; without one page_size is 0
  int64_t block_table_stride_request, block_table_stride_page;
  int pages, page_size, rows_per_request;

  int32_t* out;  // [rows, k], rows contiguous
  int64_t out_stride_row;
};

// A cudaError_t. There is a row. Neither allocates nor synchronises.
int launch_topk(TopkParams const&, void* stream);

}  // namespace dsa
