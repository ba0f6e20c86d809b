// A vector of the indexer spread over lanes, eight neighbouring dimensions each: 16 bytes of bf16, 8 of codes. All
// arithmetic is fp32, each operation rounded by itself and in a fixed order, so that plain torch has the same bits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace dsa::indexer_quant {

constexpr int kValues = 8;  // dimensions of a lane
constexpr float kE4m3Max = 448.f;
constexpr float kMinAmax = 1e-4f;

__device__ __forceinline__ void widen_bf16(float (&x)[kValues], uint4 const& raw) {
  uint32_t const words[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < kValues; ++i)
    x[i] = __uint_as_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u);
}

__device__ __forceinline__ void load(float (&x)[kValues], __nv_bfloat16 const* p) {
  widen_bf16(x, __ldg(reinterpret_cast<uint4 const*>(p)));
}

__device__ __forceinline__ void load(float (&x)[kValues], __half const* p) {
  uint4 const raw = __ldg(reinterpret_cast<uint4 const*>(p));
  uint32_t const words[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < kValues / 2; ++i) {
    float2 const pair = __half22float2(reinterpret_cast<__half2 const&>(words[i]));
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}

__device__ __forceinline__ void load(float (&x)[kValues], float const* p) {
#pragma unroll
  for (int i = 0; i < kValues; i += 4) {
    float4 const four = __ldg(reinterpret_cast<float4 const*>(p + i));
    x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
  }
}

// Sylvester's Hadamard matrix, times 128^-0.5, of the 128 values of 16 lanes; nearest neighbours first.
__device__ __forceinline__ void rotate(float (&x)[kValues], int lane) {
#pragma unroll
  for (int distance = 1; distance < kValues; distance *= 2)
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      if ((i & distance) == 0) {
        float const a = x[i], b = x[i + distance];
        x[i] = __fadd_rn(a, b);
        x[i + distance] = __fsub_rn(a, b);
      }
#pragma unroll
  for (int distance = 1; distance < 16; distance *= 2) {
    float const sign = lane & distance ? -1.f : 1.f;
#pragma unroll
    for (int i = 0; i < kValues; ++i)  // their sum, or theirs less mine: a product by +-1 is exact
      x[i] = __fmaf_rn(x[i], sign, __shfl_xor_sync(~0u, x[i], distance));
  }
#pragma unroll
  for (float& v : x) v = __fmul_rn(v, 0.08838834764831845f);
}

// What is not finite becomes NaN, which fmaxf ignores and the conversion to e4m3 keeps. Returns the largest magnitude
// of the vector's kLanes lanes.
template <int kLanes>
__device__ __forceinline__ float amax_of_finite(float (&x)[kValues]) {
  float amax = 0;
#pragma unroll
  for (float& v : x) {
    if (fabsf(v) == __uint_as_float(0x7f800000u)) v = __uint_as_float(0x7fc00000u);
    amax = fmaxf(amax, fabsf(v));
  }
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, distance));
  return amax;
}

// The least power of two that amax / 448 does not exceed has the exponent of amax, less that of 448 = 1.75 * 2^8, and
// one more where amax's mantissa is above 1.75, which the sum carries into the exponent.
__device__ __forceinline__ float scale_of(float amax, bool ue8m0) {
  amax = fmaxf(amax, kMinAmax);
  if (!ue8m0) return __fdiv_rn(amax, kE4m3Max);
  return __uint_as_float(((__float_as_uint(amax) + 0x001fffffu) & 0x7f800000u) - (8u << 23));
}

__device__ __forceinline__ uint32_t e4m3_pair(float lo, float hi) {
  return __nv_cvt_float2_to_fp8x2(make_float2(lo, hi), __NV_SATFINITE, __NV_E4M3);
}

// x / scale as codes. The reciprocal of a power of two is exact, that of another scale is not.
__device__ __forceinline__ uint2 encode(float (&x)[kValues], float scale, bool ue8m0) {
  if (ue8m0) {
    float const inverse = __uint_as_float((254u << 23) - __float_as_uint(scale));
#pragma unroll
    for (float& v : x) v = __fmul_rn(v, inverse);
  } else {
#pragma unroll
    for (float& v : x) v = __fdiv_rn(v, scale);
  }
  return make_uint2(e4m3_pair(x[0], x[1]) | e4m3_pair(x[2], x[3]) << 16, e4m3_pair(x[4], x[5]) | e4m3_pair(x[6], x[7])
                                                                                                     << 16);
}

}  // namespace dsa::indexer_quant
