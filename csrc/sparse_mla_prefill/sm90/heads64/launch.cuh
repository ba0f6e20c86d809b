// Host side of the 64-head sparse prefill kernel.
#pragma once

#include <algorithm>

#include "common/tensor_map.h"
#include "kernel.cuh"

namespace dsa::sm90::prefill_heads64 {

// A tensor map's stride of a dimension of size 1 is never used, but must be legal.
inline uint64_t map_stride(int64_t stride, int size) { return size > 1 ? uint64_t(stride) * sizeof(bf16) : 16; }

template <class Config>
cudaError_t launch(SparseMlaPrefillParams const& p, cudaStream_t stream) {
  int device = 0, sms = 0;
  if (cudaError_t e = cudaGetDevice(&device)) return e;
  if (cudaError_t e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device)) return e;

  TensorMaps maps;
  if (cudaError_t e = encode_bf16_tensor_map<4>(
          maps.q, p.q, {uint64_t(p.d_qk), uint64_t(p.h_q), uint64_t(p.s_q), uint64_t(p.batch)},
          {map_stride(p.q_stride_head, p.h_q), map_stride(p.q_stride_token, p.s_q),
           map_stride(p.q_stride_batch, p.batch)},
          {kTileCols, kBlockH, 1, 1}))
    return e;
  if (cudaError_t e = encode_bf16_tensor_map<4>(
          maps.out, p.out, {uint64_t(p.d_v), uint64_t(p.h_q), uint64_t(p.s_q), uint64_t(p.batch)},
          {map_stride(p.out_stride_head, p.h_q), map_stride(p.out_stride_token, p.s_q),
           map_stride(p.out_stride_batch, p.batch)},
          {kTileCols, kBlockH / 4, 1, 1}))
    return e;

  int const head_blocks = (p.h_q + kBlockH - 1) / kBlockH;
  KernelParams const params{p, head_blocks, int64_t(p.batch) * p.s_q * head_blocks};

  auto const kernel = sparse_mla_prefill_heads64<Config>;
  constexpr int kShared = sizeof(typename Config::SharedStorage);
  if (cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared)) return e;
  kernel<<<unsigned(std::min<int64_t>(params.tiles, sms)), kThreads, kShared, stream>>>(params, maps);
  return cudaGetLastError();
}

}  // namespace dsa::sm90::prefill_heads64
