// Vectors of 32, 64 or 128 numbers to codes and a scale: 4, 8 or 16 lanes each. Bound by memory.
#pragma once

#include <cuda_runtime.h>

#include "op.h"
#include "vector.cuh"

namespace dsa::indexer_quant {

constexpr int kQuantizeThreads = 128;
static_assert(kQuantizeThreads * kValues == 1024, "op.cpp: kElementsOfABlock");

template <class T, int kHeadDim>
__global__ void __launch_bounds__(kQuantizeThreads) quantize_kernel(__grid_constant__ QuantizeIndexerParams const p) {
  constexpr int kLanes = kHeadDim / kValues;
  int64_t const vector = int64_t(blockIdx.x) * (kQuantizeThreads / kLanes) + threadIdx.x / kLanes;
  int const lane = threadIdx.x % kLanes;
  bool const exists = vector < p.vectors;  // its lanes stay for the shuffles of their neighbours

  float x[kValues];
  load(x, static_cast<T const*>(p.x) + (exists ? vector : 0) * p.x_stride + lane * kValues);
  float const scale = scale_of(amax_of_finite<kLanes>(x), p.ue8m0);
  uint2 const codes = encode(x, scale, p.ue8m0);
  if (!exists) return;
  static_cast<uint2*>(p.codes)[vector * kLanes + lane] = codes;
  if (lane == 0) p.scale[vector] = scale;
}

}  // namespace dsa::indexer_quant
