// Host side that the sparse prefill kernels on Hopper share.
#pragma once

#include <algorithm>

#include "common/tensor_map.h"
#include "sparse_mla_prefill/sm90/work.h"

namespace dsa::sm90 {

// Starts a persistent kernel: tiles of tile_heads heads; Q read in boxes of as many, out written in boxes of out_heads,
// both of 64 columns.
template <class Kernel>
cudaError_t launch_tiles(Kernel* kernel, int threads, int shared_bytes, int tile_heads, int out_heads,
                         SparseMlaPrefillParams const& p, cudaStream_t stream) {
  int device = 0, sms = 0;
  if (cudaError_t e = cudaGetDevice(&device)) return e;
  if (cudaError_t e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device)) return e;

  // The stride of a dimension of size 1 is never used, but must be legal.
  auto const bytes = [](int64_t stride, int size) { return size > 1 ? uint64_t(stride) * 2 : uint64_t(16); };
  auto const heads = uint64_t(p.h_q), tokens = uint64_t(p.s_q), batch = uint64_t(p.batch);
  TensorMaps maps;
  if (cudaError_t e = encode_bf16_tensor_map<4>(
          maps.q, p.q, {uint64_t(p.d_qk), heads, tokens, batch},
          {bytes(p.q_stride_head, p.h_q), bytes(p.q_stride_token, p.s_q), bytes(p.q_stride_batch, p.batch)},
          {64, uint32_t(tile_heads), 1, 1}))
    return e;
  if (cudaError_t e = encode_bf16_tensor_map<4>(
          maps.out, p.out, {uint64_t(p.d_v), heads, tokens, batch},
          {bytes(p.out_stride_head, p.h_q), bytes(p.out_stride_token, p.s_q), bytes(p.out_stride_batch, p.batch)},
          {64, uint32_t(out_heads), 1, 1}))
    return e;

  int const head_blocks = (p.h_q + tile_heads - 1) / tile_heads;
  KernelParams const params{p, tile_heads, head_blocks, uint32_t(p.batch) * p.s_q * head_blocks};
  if (cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes)) return e;
  kernel<<<unsigned(std::min<int64_t>(params.tiles, sms)), threads, shared_bytes, stream>>>(params, maps);
  return cudaGetLastError();
}

}  // namespace dsa::sm90
