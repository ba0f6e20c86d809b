// sparse_mla_decode, torch-free: what op.cpp hands to a kernel's launcher, and how it chooses one.
#pragma once

#include <cstdint>

#include "common/kv_format.h"

namespace dsa {

enum class KvFormat { kV32, kV4, kBf16 };

// A paged cache. bf16 caches have kHeadDim columns; their strides are in bytes too.
struct KvCache {
  void const* data;  // null: there is none
  KvCacheLayout layout;
  int slots;  // anything outside [0, slots) is skipped
};

// The tokens of one cache that queries look at.
struct KvSelection {
  KvCache cache;
  int32_t const* idx;  // [batch, s_q, topk]
  int64_t idx_stride_batch, idx_stride_token;
  int topk;
  int32_t const* length;  // [batch, s_q] or null; clamped to [0, topk]
  int64_t length_stride_batch, length_stride_token;
};

// Sparse MLA decode: as sparse_mla_fwd, on a cache of tokens in pages; the tokens of a second cache may take part in
// the same softmax. Strides of q and out are in elements; every last dimension is contiguous; q, out and the caches'
// rows start at, and step by, multiples of 16 bytes (op.cpp sees to it).
struct SparseMlaDecodeParams {
  void const* q;           // bf16 [batch, s_q, h_q, d_qk]
  KvSelection keys[2];     // the second one's topk is 0 where there is no second cache
  float const* attn_sink;  // [h_q] or null
  void* out;               // bf16 [batch, s_q, h_q, 512]
  float* lse;              // [batch, s_q, h_q], contiguous, natural logarithm
  float* partial_out;      // plan.h: partial_slots x padded heads x 512
  float* partial_lse;      // plan.h: partial_slots x padded heads; base 2
  int32_t const* plan;     // plan.h; null: none, or no need of it
  bool batch_invariant;

  int batch, s_q, h_q;
  int d_qk;
  float scale;  // finite, > 0

  int64_t q_stride_batch, q_stride_token, q_stride_head;
  int64_t out_stride_batch, out_stride_token, out_stride_head;
};

// One way of computing the op. op.cpp takes the first whose why_unsupported is null and names every reason otherwise.
struct SparseMlaDecodeImpl {
  char const* name;
  int compute_major;  // of the devices that it runs on
  char const* (*why_unsupported)(KvFormat, int h_q);
  int (*launch)(SparseMlaDecodeParams const&, KvFormat, void* stream);  // a cudaError_t
};

namespace sm90 {
extern SparseMlaDecodeImpl const kSparseMlaDecodeHeads64;   // heads are the rows of the tensor-core tiles: 64 a CTA
extern SparseMlaDecodeImpl const kSparseMlaDecodeFewHeads;  // keys are the rows: up to 16 heads
}  // namespace sm90
namespace sm100 {
extern SparseMlaDecodeImpl const kSparseMlaDecodeHeads64;  // up to 64 heads, by one CTA
extern SparseMlaDecodeImpl const kSparseMlaDecodePair;     // a pair of CTAs takes 128 heads
}  // namespace sm100

}  // namespace dsa
