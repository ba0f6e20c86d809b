// quantize_indexer, prepare_indexer and store_indexer_cache, torch-free: what op.cpp hands to the launchers. One
// implementation for every architecture.
#pragma once

#include <cstdint>

#include "common/kv_format.h"

namespace dsa {

enum class IndexerElement { kBf16, kFp16, kFp32 };

// A scale and e4m3 codes for each vector.
struct QuantizeIndexerParams {
  void const* x;  // [vectors, head_dim] of `element`, rows 16-byte aligned
  int64_t x_stride;
  int64_t vectors;
  IndexerElement element;
  int head_dim;  // 32, 64 or 128
  bool ue8m0;    // scales are powers of two

  void* codes;   // [vectors, head_dim], contiguous, 16-byte aligned
  float* scale;  // [vectors]
};

// RoPE on the first 64 of 128 dimensions, the rotation by Hadamard's matrix, quantisation; the queries' scales go into
// the weights.
struct PrepareIndexerParams {
  static constexpr int kHeadDim = 128, kRope = 64;

  void const* q;  // bf16 [tokens, heads, 128], rows 16-byte aligned, as k's, cos's and sin's
  int64_t q_stride_token, q_stride_head;
  void const* k;  // bf16 [tokens, 128]
  int64_t k_stride_token;
  void const* weights;  // [tokens, heads], fp32 or bf16
  int64_t weights_stride_token;
  bool weights_are_bf16;
  float const* cos;  // [tokens, 32], one for each pair of dimensions
  float const* sin;
  int64_t cos_stride_token, sin_stride_token;
  int tokens, heads;  // tokens * (heads + 1) < 2^31
  bool interleaved;   // pairs of RoPE: (2i, 2i + 1), else (i, i + 32)
  bool hadamard;
  bool ue8m0;
  float weight_factor;  // of every weight, besides its query's scale

  void* q_codes;  // [tokens, heads, 128], these and the rest contiguous, 16-byte aligned
  void* k_codes;  // [tokens, 128]
  float* k_scale;
  float* weights_folded;  // [tokens, heads]
};

// Every slot is named at most once.
struct StoreIndexerCacheParams {
  void const* k;  // e4m3 [tokens, layout.head_dim], rows 16-byte aligned
  int64_t k_stride_token;
  float const* k_scale;  // [tokens]
  int64_t k_scale_stride;
  int32_t const* slots;  // [tokens]; what is outside [0, cache_slots) is skipped
  int64_t slots_stride;
  int tokens;

  void* cache;
  IndexerKeyCache layout;
  int cache_slots;
};

// They return a cudaError_t. There is a vector, a token, a slot.
int launch_quantize_indexer(QuantizeIndexerParams const&, void* stream);
int launch_prepare_indexer(PrepareIndexerParams const&, void* stream);
int launch_store_indexer_cache(StoreIndexerCacheParams const&, void* stream);

}  // namespace dsa
