// Host side of the kernel.
#pragma once

#include <algorithm>

#include "common/launch.h"
#include "common/tensor_map.h"
#include "kernel.cuh"

namespace dsa::sm100::decode {

// Q in boxes of 64 heads and 64 columns.
inline cudaError_t encode_q(CUtensorMap& map, SparseMlaDecodeParams const& p) {
  // The stride of a dimension of size 1 is never used, but must be legal.
  auto const bytes = [](int64_t stride, int size) { return size > 1 ? uint64_t(stride) * 2 : uint64_t(16); };
  return encode_bf16_tensor_map<4>(
      map, p.q, {uint64_t(p.d_qk), uint64_t(p.h_q), uint64_t(p.s_q), uint64_t(p.batch)},
      {bytes(p.q_stride_head, p.h_q), bytes(p.q_stride_token, p.s_q), bytes(p.q_stride_batch, p.batch)},
      {kTileCols, kBlockH, 1, 1});
}

// Starts a persistent kernel, and the one that adds up what its workers share.
template <class Format, int kCtas>
cudaError_t launch(SparseMlaDecodeParams const& p, cudaStream_t stream) {
  using Config = decode::Config<Format, kCtas>;
  int device = 0, sms = 0;
  if (cudaError_t e = cudaGetDevice(&device)) return e;
  if (cudaError_t e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device)) return e;

  DecodeShape const shape{p.batch * p.s_q, p.h_q, {p.keys[0].topk, p.keys[1].topk}};
  int const parts = shape.parts(sms), tile_heads = kCtas * kBlockH, head_blocks = (p.h_q + tile_heads - 1) / tile_heads;
  DecodeParams const params{p, shape, parts, tile_heads, head_blocks, parts * head_blocks};
  CUtensorMap q_map;
  if (cudaError_t e = encode_q(q_map, p)) return e;
  auto* const kernel = sparse_mla_decode<Config>;
  constexpr int kSharedBytes = sizeof(typename Config::SharedStorage);
  if (cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes)) return e;
  int const workers = std::min(params.items, std::max(1, sms / kCtas));
  if (cudaError_t e = launch_early(kernel, {workers * kCtas, kThreads}, kSharedBytes, stream, params, q_map)) return e;
  return cudaError_t(launch_decode_combine(p, stream));
}

}  // namespace dsa::sm100::decode
