// Host side that the decode kernels on Hopper share.
#pragma once

#include "attention/sm90/tensor_maps.h"
#include "common/launch.h"
#include "sparse_mla_decode/sm90/work.cuh"

namespace dsa::sm90 {

inline DecodeShape shape_of(SparseMlaDecodeParams const& p) {
  return {p.batch * p.s_q, p.h_q, {p.keys[0].topk, p.keys[1].topk}};
}

// How many clusters of so many CTAs of the kernel can run at once.
template <class Kernel>
cudaError_t max_clusters(Kernel* kernel, int size, int shared_bytes, int* clusters) {
  if (cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes)) return e;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(size), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(size));
  config.blockDim = dim3(kDecodeThreads);
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaOccupancyMaxActiveClusters(clusters, kernel, &config);
}

// Starts a persistent kernel, a CTA for each head block of a part, or for two parts where there are few heads; or, with
// a team, one of as many CTAs for each head block of a query.
template <class Kernel>
cudaError_t launch_decode(Kernel* kernel, int shared_bytes, int tile_heads, int out_heads, int team,
                          SparseMlaDecodeParams const& p, cudaStream_t stream) {
  int device = 0, sms = 0;
  if (cudaError_t e = cudaGetDevice(&device)) return e;
  if (cudaError_t e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device)) return e;
  DecodeShape const shape = shape_of(p);
  DecodeParams const params{p, shape, shape.parts(sms), team};
  TensorMaps maps;
  if (cudaError_t e = encode_maps(maps, p, tile_heads, out_heads)) return e;
  if (cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes)) return e;
  if (team > 1) {
    return launch_early(kernel, {shape.queries * shape.head_blocks() * team, kDecodeThreads, team}, shared_bytes,
                        stream, params, maps);
  }
  int const ctas = shape.few_heads() ? params.parts / 2 : params.parts * shape.head_blocks();
  if (cudaError_t e = launch_early(kernel, {ctas, kDecodeThreads}, shared_bytes, stream, params, maps)) return e;
  return cudaError_t(launch_decode_combine(p, stream));
}

}  // namespace dsa::sm90
