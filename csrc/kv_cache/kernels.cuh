// A warp moves a token. Its dimensions are chunks of 16: 32 bytes of bf16, a sector, become 16 bytes of codes, or stay.
//
//   v32   lanes 0..31: codes, 8 lanes a scale; then lanes 0..3: RoPE
//   v4    lanes 0..27: codes, 4 lanes a scale; lanes 28..31: RoPE
//
// Bound by memory: what a token costs beyond its bytes is 16 lanes' worth of conversions.
#pragma once

#include <cuda_runtime.h>

#include "op.h"
#include "quantise.cuh"

namespace dsa::kv_cache {

// Few enough that a decode step's tokens spread over the multiprocessors.
constexpr int kTokensPerBlock = 4;
constexpr int kThreads = kTokensPerBlock * 32;

template <class Format>
struct Chunks {
  static constexpr int kNope = Format::kNope / kChunk, kAll = Format::kHeadDim / kChunk;
  static constexpr int kRounds = (kAll + 31) / 32;
  static constexpr int kPerGroup = Format::kGroup / kChunk;
  static_assert(Format::kNope % kChunk == 0 && Format::kRope % kChunk == 0 && Format::kGroup % kChunk == 0);
  static_assert(kNope <= 32 && 32 % kPerGroup == 0, "groups are reduced in the first round");
};

// Accesses of sizeof(T) bytes, or byte by byte where a cache is not aligned to them.
template <bool kAligned, class T>
__device__ __forceinline__ void store(uint8_t* address, T const& value) {
  if constexpr (kAligned) {
    *reinterpret_cast<T*>(address) = value;
  } else {
#pragma unroll
    for (int i = 0; i < int(sizeof(T)); ++i)
      address[i] = uint8_t(reinterpret_cast<uint32_t const*>(&value)[i / 4] >> (8 * (i % 4)));
  }
}

template <bool kAligned, class T>
__device__ __forceinline__ T load(uint8_t const* address) {
  if constexpr (kAligned) {
    return __ldg(reinterpret_cast<T const*>(address));
  } else {
    T value;
    uint32_t* const words = reinterpret_cast<uint32_t*>(&value);
#pragma unroll
    for (int i = 0; i < int(sizeof(T)); ++i)
      words[i / 4] = (i % 4 ? words[i / 4] : 0u) | uint32_t(address[i]) << (8 * (i % 4));
    return value;
  }
}

template <class Format, bool kAligned>
__global__ void __launch_bounds__(kThreads) store_kernel(__grid_constant__ KvStoreParams const p) {
  using C = Chunks<Format>;
  int64_t const token = int64_t(blockIdx.x) * kTokensPerBlock + threadIdx.x / 32;
  int const lane = threadIdx.x % 32;
  if (token >= (p.slots != nullptr ? p.tokens : p.cache_slots)) return;
  bool const is_token = token < p.tokens;

  // Before the slot is known: neither load waits for the other.
  Bf16Chunk chunks[C::kRounds] = {};
  auto const* const row = static_cast<__nv_bfloat16 const*>(p.kv) + token * p.kv_stride_token;
#pragma unroll
  for (int round = 0; round < C::kRounds; ++round) {
    int const chunk = round * 32 + lane;
    if (is_token && chunk < C::kAll) {
      chunks[round].half[0] = __ldg(reinterpret_cast<uint4 const*>(row + chunk * kChunk));
      chunks[round].half[1] = __ldg(reinterpret_cast<uint4 const*>(row + chunk * kChunk) + 1);
    }
  }
  int const slot = p.slots != nullptr ? __ldg(p.slots + token * p.slots_stride) : int(token);
  if (slot < 0 || slot >= p.cache_slots) return;
  KvFields const at = kv_fields<Format>(p.layout, slot);
  auto* const cache = static_cast<uint8_t*>(p.cache);

  float x[kChunk];
  float amax = widen(x, chunks[0]);
#pragma unroll
  for (int distance = C::kPerGroup / 2; distance > 0; distance /= 2)
    amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, distance));
  float const scale = scale_of(amax, p.ue8m0);
  if (lane < C::kNope) {
    store<kAligned>(cache + at.codes + lane * kChunk, quantise(x, scale, p.ue8m0));
    if (lane % C::kPerGroup == 0) {
      uint32_t const bits = is_token ? __float_as_uint(scale) : 0;
      uint8_t* const place = cache + at.scales + lane / C::kPerGroup * Format::kScaleBytes;
      if constexpr (Format::kScaleBytes == 4)
        store<kAligned>(place, bits);
      else
        *place = uint8_t(bits >> 23);
    }
  }
  if (Format::kScalePad > 0 && lane < Format::kScalePad)
    cache[at.scales + Format::kGroups * Format::kScaleBytes + lane] = 0;

#pragma unroll
  for (int round = 0; round < C::kRounds; ++round) {
    int const chunk = round * 32 + lane;
    if (chunk >= C::kNope && chunk < C::kAll) {
      uint8_t* const place = cache + at.rope + (chunk - C::kNope) * int(sizeof(Bf16Chunk));
      store<kAligned>(place, chunks[round].half[0]);
      store<kAligned>(place + sizeof(uint4), chunks[round].half[1]);
    }
  }
}

template <class Format, bool kAligned>
__global__ void __launch_bounds__(kThreads) unpack_kernel(__grid_constant__ KvUnpackParams const p) {
  using C = Chunks<Format>;
  int64_t const slot = int64_t(blockIdx.x) * kTokensPerBlock + threadIdx.x / 32;
  int const lane = threadIdx.x % 32;
  if (slot >= p.cache_slots) return;
  KvFields const at = kv_fields<Format>(p.layout, int(slot));
  auto const* const cache = static_cast<uint8_t const*>(p.cache);
  auto* const row = static_cast<uint8_t*>(p.out) + slot * (Format::kHeadDim * 2);

#pragma unroll
  for (int round = 0; round < C::kRounds; ++round) {
    int const chunk = round * 32 + lane;
    if (chunk >= C::kAll) break;
    Bf16Chunk values;
    if (chunk < C::kNope) {
      uint4 const codes = load<kAligned, uint4>(cache + at.codes + chunk * kChunk);
      uint8_t const* const place = cache + at.scales + chunk / C::kPerGroup * Format::kScaleBytes;
      uint32_t scale;
      if constexpr (Format::kScaleBytes == 4)
        scale = load<kAligned, uint32_t>(place);
      else
        scale = e8m0_to_fp32_bits(__ldg(place));
      values = dequantise(codes, __uint_as_float(scale));
    } else {
      uint8_t const* const place = cache + at.rope + (chunk - C::kNope) * int(sizeof(Bf16Chunk));
      values.half[0] = load<kAligned, uint4>(place);
      values.half[1] = load<kAligned, uint4>(place + sizeof(uint4));
    }
    store<true>(row + chunk * int(sizeof(Bf16Chunk)), values.half[0]);
    store<true>(row + chunk * int(sizeof(Bf16Chunk)) + int(sizeof(uint4)), values.half[1]);
  }
}

template <class Params>
cudaError_t launch(void (*kernel)(Params), Params const& params, int tokens, void* stream) {
  unsigned const blocks = (unsigned(tokens) + kTokensPerBlock - 1) / kTokensPerBlock;
  kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(params);
  return cudaGetLastError();
}

}  // namespace dsa::kv_cache
