// Between sixteen bf16 and sixteen e4m3 with a scale: the share of a lane, 16 bytes of codes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace dsa::kv_cache {

constexpr int kChunk = 16;  // dimensions
constexpr float kE4m3Max = 448.f;
constexpr float kMinScale = 1e-4f;

// 32 bytes.
struct Bf16Chunk {
  uint4 half[2];
};

// What is not finite becomes NaN, which fmaxf ignores and the conversion to e4m3 keeps. Returns the largest magnitude.
__device__ __forceinline__ float widen(float (&x)[kChunk], Bf16Chunk const& chunk) {
  uint32_t const words[kChunk / 2] = {chunk.half[0].x, chunk.half[0].y, chunk.half[0].z, chunk.half[0].w,
                                      chunk.half[1].x, chunk.half[1].y, chunk.half[1].z, chunk.half[1].w};
  float amax = 0;
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    x[i] = __uint_as_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u);
    float const magnitude = fabsf(x[i]);
    if (magnitude == __uint_as_float(0x7f800000u)) x[i] = __uint_as_float(0x7fc00000u);
    amax = fmaxf(amax, fabsf(x[i]));
  }
  return amax;
}

// The scale of a group. Rounding up to a power of two is exact: any bit of the mantissa carries into the exponent.
__device__ __forceinline__ float scale_of(float amax, bool ue8m0) {
  float const scale = fmaxf(__fdiv_rn(amax, kE4m3Max), kMinScale);
  return ue8m0 ? __uint_as_float((__float_as_uint(scale) + 0x007fffffu) & 0x7f800000u) : scale;
}

__device__ __forceinline__ uint32_t e4m3_pair(float lo, float hi) {
  return __nv_cvt_float2_to_fp8x2(make_float2(lo, hi), __NV_SATFINITE, __NV_E4M3);
}

__device__ __forceinline__ uint4 pack_e4m3(float const (&x)[kChunk]) {
  uint32_t words[kChunk / 4];
#pragma unroll
  for (int i = 0; i < kChunk / 4; ++i)
    words[i] = e4m3_pair(x[4 * i], x[4 * i + 1]) | e4m3_pair(x[4 * i + 2], x[4 * i + 3]) << 16;
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// x / scale as codes. The reciprocal of a power of two is exact, that of another scale is not.
__device__ __forceinline__ uint4 quantise(float (&x)[kChunk], float scale, bool ue8m0) {
  if (ue8m0) {
    float const inverse = __uint_as_float((254u << 23) - __float_as_uint(scale));
#pragma unroll
    for (float& v : x) v *= inverse;
  } else {
#pragma unroll
    for (float& v : x) v = __fdiv_rn(v, scale);
  }
  return pack_e4m3(x);
}

// Four codes times the scale, as two words of bf16.
__device__ __forceinline__ uint2 dequantise_word(uint32_t codes, float scale) {
  uint32_t words[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    __half2 const pair = __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t(codes >> (16 * i)), __NV_E4M3);
    float2 const x = __half22float2(pair);  // both conversions are exact
    __nv_bfloat162 const rounded = __floats2bfloat162_rn(x.x * scale, x.y * scale);
    words[i] = reinterpret_cast<uint32_t const&>(rounded);
  }
  return make_uint2(words[0], words[1]);
}

__device__ __forceinline__ Bf16Chunk dequantise(uint4 codes, float scale) {
  uint2 const a = dequantise_word(codes.x, scale), b = dequantise_word(codes.y, scale);
  uint2 const c = dequantise_word(codes.z, scale), d = dequantise_word(codes.w, scale);
  return {make_uint4(a.x, a.y, b.x, b.y), make_uint4(c.x, c.y, d.x, d.y)};
}

}  // namespace dsa::kv_cache
