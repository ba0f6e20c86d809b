// Host side that the sparse prefill kernels on Hopper share.
#pragma once

#include <algorithm>

#include "attention/sm90/tensor_maps.h"
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

  TensorMaps maps;
  if (cudaError_t e = encode_maps(maps, p, tile_heads, out_heads)) return e;

  int const head_blocks = (p.h_q + tile_heads - 1) / tile_heads;
  KernelParams const params{p, tile_heads, head_blocks, uint32_t(p.batch) * p.s_q * head_blocks};
  if (cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes)) return e;
  kernel<<<unsigned(std::min<int64_t>(params.tiles, sms)), threads, shared_bytes, stream>>>(params, maps);
  return cudaGetLastError();
}

}  // namespace dsa::sm90
