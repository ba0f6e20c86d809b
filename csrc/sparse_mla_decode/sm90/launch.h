// Host side that the decode kernels on Hopper share.
#pragma once

#include "attention/sm90/tensor_maps.h"
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
  // It starts while the kernel before ends, and waits for that one's end before it reads anything.
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(ctas));
  config.blockDim = dim3(kDecodeThreads);
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  if (cudaError_t e = cudaLaunchKernelEx(&config, kernel, params, maps)) return e;
  return cudaError_t(launch_decode_combine(p, stream));
}

}  // namespace dsa::sm90
