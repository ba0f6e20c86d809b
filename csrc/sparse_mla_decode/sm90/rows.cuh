// The cache rows of one block, as a producer thread sees them, and how their bytes are fetched.
#pragma once

#include "arch/sm90/gather.cuh"
#include "attention/fp8.cuh"
#include "key_walk.cuh"

namespace dsa::sm90 {

__device__ __forceinline__ uint4 load_16B(void const* address) {
  uint4 v;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}

__device__ __forceinline__ void prefetch_row(void const* address, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes) : "memory");
}

// A block of which nothing but the indices is known. A warp fills rows 16 w .. 16 w + 15, and lanes l and l + 16 hold
// the index of row 16 w + l.
struct BlockIndices {
  int index = -1;
  int selection = -1;  // < 0: there is no block
  int consumer = 0;    // that the block is for

  __device__ __forceinline__ bool exists() const { return selection >= 0; }

  __device__ __forceinline__ void load(KeyBlock const& block, int place) {
    selection = block.selection;
    index = place < block.count ? __ldg(block.idx + place) : -1;
  }
};

// Where the rows of a block are.
template <class Format>
struct BlockRows {
  // Code tiles are fetched by quads of lanes: lane l has the 16 bytes l % 4 of rows 16 w + l / 4 + {0, 8}.
  static constexpr int kMine = 2;

  char const* cache = nullptr;
  uint32_t at16 = 0;       // of the lane's own row (l % 16): its place in the cache, in 16 bytes
  uint32_t valid = 0;      // bit r: row 16 w + r counts
  uint32_t mine16[kMine];  // of the rows that it fetches codes of
  uint32_t scales[kMine];  // of these; lane l % 4 holds the l % 4-th word of what the quad needs
  int consumer = 0;
  bool exists = false;

  __device__ __forceinline__ void open(DecodeParams const& params, BlockIndices const& block, int lane) {
    exists = block.exists();
    if (!exists) return;
    consumer = block.consumer;
    KvCache const c = cache_of(params, block);
    cache = static_cast<char const*>(c.data);
    bool const inside = uint32_t(block.index) < uint32_t(c.slots);
    KvFields const fields = kv_fields<Format>(c.layout, inside ? block.index : 0);
    at16 = uint32_t(fields.codes >> 4);
    valid = __ballot_sync(~0u, inside) & 0xffff;
    if constexpr (Format::kNope > 0) {
      // Scales by words: all of v32's four, or the two that hold v4's bytes.
      constexpr int kWords = Format::kScaleBytes == 4 ? 4 : 2;
      uint32_t const scales16 = uint32_t(fields.scales >> 3);
#pragma unroll
      for (int j = 0; j < kMine; ++j) {
        int const row = lane / 4 + j * 8;
        mine16[j] = __shfl_sync(~0u, at16, row);
        int64_t const offset = int64_t(__shfl_sync(~0u, scales16, row)) * 8 + lane % kWords * 4;
        scales[j] = valid >> row & 1 ? __ldg(reinterpret_cast<uint32_t const*>(cache + offset)) : 0;
      }
    }
  }

  static __device__ __forceinline__ KvCache cache_of(DecodeParams const& params, BlockIndices const& block) {
    return block.selection == 0 ? params.keys[0].cache : params.keys[1].cache;
  }

  __device__ __forceinline__ bool is_valid(int row) const { return valid >> row & 1; }

  // The rows' bytes on their way from memory to L2. Each row by the lane that holds its index.
  static __device__ __forceinline__ void prefetch(DecodeParams const& params, BlockIndices const& block, int lane) {
    if (!block.exists() || lane >= 16) return;
    KvCache const c = cache_of(params, block);
    if (uint32_t(block.index) >= uint32_t(c.slots)) return;
    KvFields const fields = kv_fields<Format>(c.layout, block.index);
    constexpr int kBytes = Format::kScalesInLine ? Format::kTokenBytes : Format::kNope + Format::kRope * 2;
    prefetch_row(static_cast<char const*>(c.data) + fields.codes, kBytes);
  }

  // 64 columns of codes from column tile * 64 on: this lane's 16 of its row j.
  __device__ __forceinline__ uint4 load_codes(int tile, int j, int lane) const {
    if (!exists || !is_valid(lane / 4 + j * 8)) return {0, 0, 0, 0};
    return load_16B(cache + (int64_t(mine16[j]) * 16 + tile * 64 + lane % 4 * 16));
  }

  // The scale of the lane's row j in a tile of 64 columns. All lanes call it.
  __device__ __forceinline__ float scale(int tile, int j, int lane) const {
    if constexpr (Format::kScaleBytes == 4) {
      return __uint_as_float(__shfl_sync(~0u, scales[j], (lane & ~3) | tile * 64 / Format::kGroup));
    } else {
      uint32_t const word = __shfl_sync(~0u, scales[j], (lane & ~3) | tile / 4);
      return __uint_as_float(e8m0_to_fp32_bits(word >> tile % 4 * 8 & 0xff));
    }
  }

  // Copies 64 bf16 columns, which begin `byte` bytes into the rows, into a swizzled tile. Eight lanes a row.
  __device__ __forceinline__ void copy_tile(uint32_t tile, int byte, int lane, int warp) const {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      int const row_in_warp = step * 4 + lane / 8, row = warp * 16 + row_in_warp;
      char const* const src = cache + (int64_t(__shfl_sync(~0u, at16, row_in_warp)) * 16 + byte + lane % 8 * 16);
      gather_16B(tile + row * 128 + ((lane % 8) ^ (row % 8)) * 16, src, is_valid(row_in_warp));
    }
  }
};

// The lane's 16 columns of row j of a tile, dequantised.
__device__ __forceinline__ void store_codes(uint32_t tile, uint4 const& codes, float scale, int j, int lane, int warp) {
  int const row = warp * 16 + lane / 4 + j * 8;
  uint32_t const words[4] = {codes.x, codes.y, codes.z, codes.w};
  uint2 out[4];
  if (__all_sync(~0u, scale_is_simple(scale))) {
    uint32_t const factor = simple_factor(scale);
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = dequantise_simple(words[i], factor);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = dequantise(words[i], scale);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t const address = tile + row * 128 + ((lane % 4 * 2 + half) ^ (row % 8)) * 16;
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(out[half * 2].x), "r"(out[half * 2].y),
                 "r"(out[half * 2 + 1].x), "r"(out[half * 2 + 1].y)
                 : "memory");
  }
}

}  // namespace dsa::sm90
