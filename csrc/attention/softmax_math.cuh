// Scalar pieces of an online softmax in base 2. A row's reference is the exponent that its probabilities are relative
// to: p = 2^(score * scale * log2(e) - reference). It need not be the row's maximum (see kRescaleThreshold).
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace dsa {

constexpr float kLog2e = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

// Probabilities may exceed 1 by this power of two before the accumulated output is rescaled to a new reference. 2^8 of
// head room costs no precision (bf16 and fp32 are floating) and is met by almost no block but a row's first.
constexpr float kRescaleThreshold = 8.f;

__device__ __forceinline__ float negative_infinity() { return __int_as_float(0xff800000); }
__device__ __forceinline__ float positive_infinity() { return __int_as_float(0x7f800000); }

__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Before a row has met a valid key its reference is -inf; its exponents then start from 0, so that masked scores give
// 2^-inf = 0 and not 2^(-inf + inf).
__device__ __forceinline__ float exponent_offset(float reference) {
  return reference == negative_infinity() ? 0.f : reference;
}

__device__ __forceinline__ uint32_t pack_bf16(float lo, float hi) {
  __nv_bfloat162 const v = __floats2bfloat162_rn(lo, hi);
  return reinterpret_cast<uint32_t const&>(v);
}

// What the output accumulator is multiplied by at the end: 1 / sum, times sum / (sum + e^sink) with an attention sink.
// A row without any valid key has output 0 whatever the sink.
__device__ __forceinline__ float output_scale(float sum, float reference, float sink) {
  if (sum == 0.f) return 0.f;
  return 1.f / (sum + exp2f(sink * kLog2e - reference));
}

__device__ __forceinline__ float natural_lse(float sum, float reference) {
  return sum == 0.f ? positive_infinity() : logf(sum) + reference * kLn2;
}

}  // namespace dsa
