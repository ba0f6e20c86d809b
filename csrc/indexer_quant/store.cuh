// Keys into the slots of a paged cache: a lane moves 16 bytes of codes, whatever the cache's alignment makes of them.
#pragma once

#include <cuda_runtime.h>

#include "op.h"

namespace dsa::indexer_quant {

constexpr int kStoreThreads = 128;
constexpr int kStoreBytes = 16;  // codes of a lane

constexpr int tokens_per_block(IndexerKeyCache const& layout) {
  return kStoreThreads / (layout.head_dim / kStoreBytes);
}

// `Word` is what addresses of codes are multiples of; those of scales are, up to 4 bytes.
template <class Word>
__device__ __forceinline__ void store_codes(uint8_t* to, uint4 const& codes) {
  if constexpr (sizeof(Word) == 16) {
    *reinterpret_cast<uint4*>(to) = codes;
  } else {
    uint32_t const words[] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int i = 0; i < kStoreBytes; i += int(sizeof(Word)))
      *reinterpret_cast<Word*>(to + i) = Word(words[i / 4] >> (8 * (i % 4)));
  }
}

template <class Word>
__device__ __forceinline__ void store_scale(uint8_t* to, uint32_t bits) {
  if constexpr (sizeof(Word) >= 4) {
    *reinterpret_cast<uint32_t*>(to) = bits;
  } else {
#pragma unroll
    for (int i = 0; i < IndexerKeyCache::kScaleBytes; ++i) to[i] = uint8_t(bits >> (8 * i));
  }
}

template <class Word>
__global__ void __launch_bounds__(kStoreThreads) store_kernel(__grid_constant__ StoreIndexerCacheParams const p) {
  int const lanes = p.layout.head_dim / kStoreBytes;
  unsigned const token = blockIdx.x * unsigned(tokens_per_block(p.layout)) + threadIdx.x / lanes;
  int const lane = int(threadIdx.x) % lanes;
  if (token >= unsigned(p.tokens)) return;

  // Before the slot is known: neither load waits for the other.
  auto const* const row = static_cast<uint8_t const*>(p.k) + token * p.k_stride_token;
  uint4 const codes = __ldg(reinterpret_cast<uint4 const*>(row) + lane);
  uint32_t const scale = lane == 0 ? __float_as_uint(__ldg(p.k_scale + token * p.k_scale_stride)) : 0u;
  int const slot = __ldg(p.slots + token * p.slots_stride);
  if (slot < 0 || slot >= p.cache_slots) return;
  unsigned const page = unsigned(slot) / unsigned(p.layout.page_size);
  int const place = int(unsigned(slot) - page * unsigned(p.layout.page_size));
  auto* const cache = static_cast<uint8_t*>(p.cache);
  store_codes<Word>(cache + p.layout.codes(page, place) + lane * kStoreBytes, codes);
  if (lane == 0) store_scale<Word>(cache + p.layout.scale(page, place), scale);
}

}  // namespace dsa::indexer_quant
