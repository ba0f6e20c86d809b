// sparse_mla_fwd, torch-free: what op.cpp hands to a kernel's launcher, and how it chooses one.
#pragma once

#include <cstdint>

namespace dsa {

// Sparse MLA prefill (DeepSeek-V3.2, "DSA"): for every query and head, softmax(scale * q . k_t) over the t that idx
// names, times v_t, where v_t is the first d_v columns of k_t. Strides are in elements; every last dimension is
// contiguous; q, kv and out start at, and step by, multiples of 16 bytes (op.cpp sees to it).
struct SparseMlaPrefillParams {
  void const* q;               // bf16 [batch, s_q, h_q, d_qk]
  void const* kv;              // bf16 [batch, s_kv, d_qk]
  int32_t const* idx;          // [batch, s_q, topk]; anything outside [0, s_kv) is skipped
  float const* attn_sink;      // [h_q] or null
  int32_t const* topk_length;  // [batch, s_q] or null; clamped to [0, topk]
  void* out;                   // bf16 [batch, s_q, h_q, d_v]
  float* max_logits;           // [batch, s_q, h_q], contiguous
  float* lse;                  // [batch, s_q, h_q], contiguous, natural logarithm

  int batch, s_q, h_q, s_kv, topk, d_qk, d_v;
  float scale;  // finite, > 0

  int64_t q_stride_batch, q_stride_token, q_stride_head;
  int64_t kv_stride_batch, kv_stride_token;
  int64_t idx_stride_batch, idx_stride_token;
  int64_t topk_length_stride_batch, topk_length_stride_token;
  int64_t out_stride_batch, out_stride_token, out_stride_head;
};

// The sequences' keys as rows of one matrix: how many rows one sequence is behind the other, or -1 if that is no whole
// number, or if all rows are one. A kernel whose loads know matrices alone is given others as copies (op.cpp).
inline int64_t kv_batch_rows(SparseMlaPrefillParams const& p) {
  if (p.s_kv > 1 && p.kv_stride_token == 0) return -1;
  if (p.batch == 1 || p.kv_stride_batch == 0) return 0;
  if (p.s_kv == 1) return 1;
  return p.kv_stride_batch % p.kv_stride_token == 0 ? p.kv_stride_batch / p.kv_stride_token : -1;
}

// One way of computing the op. op.cpp takes the first whose why_unsupported is null and names every reason otherwise.
struct SparseMlaPrefillImpl {
  char const* name;
  int compute_major;  // of the devices that it runs on
  char const* (*why_unsupported)(SparseMlaPrefillParams const&);
  int (*launch)(SparseMlaPrefillParams const&, void* stream);  // a cudaError_t
};

namespace sm90 {
// Heads are the rows of the tensor-core tiles: 64 a CTA.
extern SparseMlaPrefillImpl const kSparseMlaPrefillHeads64;
// Keys are the rows and heads the columns: up to 16 heads without padding to 64.
extern SparseMlaPrefillImpl const kSparseMlaPrefillFewHeads;
}  // namespace sm90
namespace sm100 {
// Up to 64 heads, by one CTA each query.
extern SparseMlaPrefillImpl const kSparseMlaPrefillHeads64;
// A pair of CTAs takes 128 heads of one query.
extern SparseMlaPrefillImpl const kSparseMlaPrefillPair;
}  // namespace sm100

}  // namespace dsa
