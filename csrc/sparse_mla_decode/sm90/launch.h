// Host side that the decode kernels on Hopper share.
#pragma once

#include "attention/sm90/tensor_maps.h"
#include "common/launch.h"
#include "sparse_mla_decode/sm90/work.cuh"

namespace dsa::sm90 {

// Starts a persistent kernel, a CTA for each head block of a part, or for two parts where there are few heads.
template <class Kernel>
cudaError_t launch_decode(Kernel* kernel, int shared_bytes, int tile_heads, int out_heads,
                          SparseMlaDecodeParams const& p, cudaStream_t stream) {
  int device = 0, sms = 0;
  if (cudaError_t e = cudaGetDevice(&device)) return e;
  if (cudaError_t e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device)) return e;
  DecodeShape const shape{p.batch * p.s_q, p.h_q, {p.keys[0].topk, p.keys[1].topk}};
  DecodeParams const params{p, shape, shape.parts(sms)};
  TensorMaps maps;
  if (cudaError_t e = encode_maps(maps, p, tile_heads, out_heads)) return e;
  if (cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes)) return e;
  int const ctas = shape.few_heads() ? params.parts / 2 : params.parts * shape.head_blocks();
  if (cudaError_t e = launch_early(kernel, ctas, kDecodeThreads, shared_bytes, stream, params, maps)) return e;
  return cudaError_t(launch_decode_combine(p, stream));
}

}  // namespace dsa::sm90
