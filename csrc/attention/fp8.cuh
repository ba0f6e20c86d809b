// e4m3 codes to bf16.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace dsa {

// Whether code * scale can be had from the codes' bits for every one of some scales, given by their bits: then each is
// a power of two, and 2^120 times it is a bf16.
template <int kCount>
__device__ __forceinline__ bool scales_are_simple(uint32_t const (&bits)[kCount]) {
  uint32_t all = 0, least = bits[0], most = bits[0];
#pragma unroll
  for (uint32_t some : bits) {
    all |= some;
    least = min(least, some);
    most = max(most, some);
  }
  return (all & 0x807fffff) == 0 && least >= 1u << 23 && most <= 134u << 23;
}
// 2^120 times a simple scale, given by its biased exponent, twice.
__host__ __device__ constexpr uint32_t simple_factor(uint32_t exponent) { return (exponent + 120) * 0x00800080u; }

// Four codes, low byte first, times a simple scale. Sign, exponent and mantissa of a code, moved to where a bf16 has
// its own, are the code's value times 2^-120, subnormals included; one exact product gives the rest. A NaN code (0x7f,
// 0xff) counts as 480.
__device__ __forceinline__ uint2 dequantise_simple(uint32_t codes, uint32_t factor) {
  // Two codes to the lower bytes of 16-bit halves, and their signs all over the upper bytes: after the shift, sign and
  // the other seven bits are in place, and the mask leaves nothing else.
  uint2 out;
  asm("prmt.b32 %0, %1, 0, 0x9180;" : "=r"(out.x) : "r"(codes));
  asm("prmt.b32 %0, %1, 0, 0xb3a2;" : "=r"(out.y) : "r"(codes));
  out.x = out.x << 4 & 0x87f087f0;
  out.y = out.y << 4 & 0x87f087f0;
  asm("mul.rn.bf16x2 %0, %0, %1;" : "+r"(out.x) : "r"(factor));
  asm("mul.rn.bf16x2 %0, %0, %1;" : "+r"(out.y) : "r"(factor));
  return out;
}
// The same for any scale: the product in fp32, rounded to bf16.
__device__ __forceinline__ uint2 dequantise(uint32_t codes, float scale) {
  uint32_t out[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    __half2_raw const h = __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t(codes >> 16 * i & 0xffff), __NV_E4M3);
    float2 const f = __half22float2(__half2(h));
    __nv_bfloat162 const b = __floats2bfloat162_rn(f.x * scale, f.y * scale);
    out[i] = reinterpret_cast<uint32_t const&>(b);
  }
  return {out[0], out[1]};
}

}  // namespace dsa
