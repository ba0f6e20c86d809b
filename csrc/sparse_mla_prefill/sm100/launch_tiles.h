// Host side that the sparse prefill kernels on Blackwell share.
#pragma once

#include <algorithm>

#include "common/tensor_map.h"
#include "roles.h"
#include "work.h"

namespace dsa::sm100 {

// Q in boxes of 64 heads, the keys' rows one at a time, both of 64 columns.
inline cudaError_t encode_maps(TensorMaps& maps, KernelParams const& p) {
  // The stride of a dimension of size 1 is never used, but must be legal.
  auto const bytes = [](int64_t stride, int size) { return size > 1 ? uint64_t(stride) * 2 : uint64_t(16); };
  if (cudaError_t e = encode_bf16_tensor_map<4>(
          maps.q, p.q, {uint64_t(p.d_qk), uint64_t(p.h_q), uint64_t(p.s_q), uint64_t(p.batch)},
          {bytes(p.q_stride_head, p.h_q), bytes(p.q_stride_token, p.s_q), bytes(p.q_stride_batch, p.batch)},
          {kTileCols, kBlockH, 1, 1}))
    return e;
  return encode_bf16_tensor_map<2>(maps.kv, p.kv, {uint64_t(p.d_qk), uint64_t(p.kv_rows)},
                                   {bytes(p.s_kv > 1 ? p.kv_stride_token : p.kv_stride_batch, p.kv_rows)},
                                   {kTileCols, 1});
}

// Starts a persistent kernel whose groups of `ctas` CTAs take a tile of 64 heads a CTA at a time.
template <class Kernel>
cudaError_t launch_tiles(Kernel* kernel, int ctas, int shared_bytes, SparseMlaPrefillParams const& p,
                         cudaStream_t stream) {
  int device = 0, sms = 0;
  if (cudaError_t e = cudaGetDevice(&device)) return e;
  if (cudaError_t e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device)) return e;

  int const tile_heads = ctas * kBlockH, head_blocks = (p.h_q + tile_heads - 1) / tile_heads;
  int const batch_rows = int(kv_batch_rows(p));
  KernelParams const params{
      p,         tile_heads, head_blocks, uint32_t(p.batch) * p.s_q * head_blocks, (p.batch - 1) * batch_rows + p.s_kv,
      batch_rows};
  TensorMaps maps;
  if (cudaError_t e = encode_maps(maps, params)) return e;
  if (cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes)) return e;
  kernel<<<ctas * std::min<unsigned>(params.tiles, sms / ctas), kThreads, shared_bytes, stream>>>(params, maps);
  return cudaGetLastError();
}

}  // namespace dsa::sm100
