// indexer_logits and paged_indexer_logits, torch-free: what op.cpp hands to the launchers, and how it chooses them.
#pragma once

#include <cstdint>

namespace dsa {

// Queries and results of both forms. Strides are in elements; q's last dimension is contiguous, and its rows start at,
// and step by, multiples of 16 bytes; out's last dimension is contiguous (op.cpp sees to it).
struct IndexerQueries {
  void const* q;         // e4m3 [batch, tokens, heads, dim]; the ragged form is one batch
  float const* weights;  // [batch, tokens, heads]
  void* out;             // fp32 or bf16 [batch, tokens, columns]
  bool out_bf16;

  int batch, tokens, heads, dim;
  int columns;  // of out; a column is a key

  int64_t q_stride_batch, q_stride_token, q_stride_head;
  int64_t weights_stride_batch, weights_stride_token, weights_stride_head;
  int64_t out_stride_batch, out_stride_token;
};

// Keys in a row; there are `columns` of them. Query s sees those in [start[s], end[s]).
struct IndexerKeys {
  void const* k;  // e4m3 [columns, dim], aligned as q is
  int64_t k_stride;
  float const* scale;  // [columns]
  int64_t scale_stride;
  int32_t const *start, *end;  // [tokens], clamped to [0, columns]
  int64_t start_stride, end_stride;
};

// Keys in a paged cache. A page is page_size times dim codes, then page_size fp32 scales.
struct PagedIndexerKeys {
  void const* cache;  // 16-byte aligned
  int pages, page_size;
  int64_t page_stride;  // bytes, a multiple of 16
  int32_t const* context_lens;
  int64_t lens_stride_batch, lens_stride_token;
  bool lens_per_token;         // [batch, tokens]; else [batch]: token j sees context_lens - tokens + j + 1 keys
  int32_t const* block_table;  // [batch, table_width] page numbers; those outside [0, pages) hold no keys
  int64_t table_stride_batch, table_stride_page;
  int table_width;
  int32_t const* plan;  // schedule.cuh, or null
};

// One way of computing the op. op.cpp takes the first whose why_unsupported is null and names every reason otherwise.
struct IndexerLogitsImpl {
  char const* name;
  int compute_major;  // of the devices that it runs on
  // page_size: 0 for the ragged form
  char const* (*why_unsupported)(int heads, int dim, int page_size);
  // Both return a cudaError_t. There is a query, a column, and a page.
  int (*launch)(IndexerQueries const&, IndexerKeys const&, void* stream);
  int (*launch_paged)(IndexerQueries const&, PagedIndexerKeys const&, void* stream);
};

namespace sm90 {
extern IndexerLogitsImpl const kIndexerLogits;
}  // namespace sm90
namespace sm100 {
extern IndexerLogitsImpl const kIndexerLogits;
}  // namespace sm100

// The plan of paged calls (schedule.cuh), for devices with so many multiprocessors.
struct IndexerPlanParams {
  int32_t const* context_lens;
  int64_t lens_stride_batch, lens_stride_token;
  bool lens_per_token;
  int batch, tokens, parts;
  int32_t* plan;
};
int launch_indexer_plan(IndexerPlanParams const&, void* stream);  // a cudaError_t

// int32 elements: a header (batch, parts), and the parts + 1 cuts.
constexpr int kIndexerPlanHeader = 2;
constexpr int64_t indexer_plan_elements(int parts) { return kIndexerPlanHeader + 2 * (int64_t(parts) + 1); }

}  // namespace dsa
