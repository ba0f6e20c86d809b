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

__device__ __forceinline__ void prefetch_line(void const* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address) : "memory");
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

// What one thread is to its warp, in registers: the compiler would read special registers again and again.
struct Lane {
  int lane, warp;
  uint32_t codes_at;  // where its first 8 bf16 of a code tile go, in bytes from the tile's first

  __device__ __forceinline__ Lane() : lane(threadIdx.x % 32), warp(threadIdx.x / 32 % 4) {
    codes_at = (warp * 16 + lane / 4) * 128 + ((lane % 4 * 2) ^ (lane / 4)) * 16;  // 128-byte swizzle
    asm volatile("" : "+r"(lane), "+r"(warp), "+r"(codes_at));
  }
};

// Where the rows of a block are.
template <class Format>
struct BlockRows {
  // Code tiles are fetched by quads of lanes: lane l has the 16 bytes l % 4 of rows 16 w + l / 4 + {0, 8}.
  static constexpr int kMine = 2;

  char const* cache = nullptr;
  uint32_t at16 = 0;        // of the lane's own row (l % 16): its place in the cache, in 16 bytes
  uint32_t valid = 0;       // bit r: row 16 w + r counts
  char const* mine[kMine];  // its bytes of the first code tile; null: the row does not count
  uint32_t scales[kMine];   // of these rows; lane l % 4 holds the l % 4-th word of what the quad needs
  int consumer = 0;
  bool exists = false;

  __device__ __forceinline__ void open(DecodeParams const& params, BlockIndices const& block, int lane) {
    exists = block.exists();
    mine[0] = mine[1] = nullptr;
    if (!exists) return;
    consumer = block.consumer;
    KvCache const c = cache_of(params, block);
    cache = static_cast<char const*>(c.data);
    bool const inside = uint32_t(block.index) < uint32_t(c.slots);
    KvFields const fields = kv_fields<Format>(c.layout, inside ? block.index : 0);
    at16 = uint32_t(fields.codes >> 4);
    valid = __ballot_sync(~0u, inside) & 0xffff;
    if constexpr (Format::kNope > 0) {
      // Scales by words: all of v32's four, or the two that hold v4's bytes. A row that does not count has scales of 1.
      constexpr int kWords = Format::kScaleBytes == 4 ? 4 : 2;
      constexpr uint32_t kOnes = Format::kScaleBytes == 4 ? 0x3f800000 : 0x7f7f7f7f;
      uint32_t const scales8 = uint32_t(fields.scales >> 3);
#pragma unroll
      for (int j = 0; j < kMine; ++j) {
        int const row = lane / 4 + j * 8;
        uint32_t const row16 = __shfl_sync(~0u, at16, row);
        int64_t const offset = int64_t(__shfl_sync(~0u, scales8, row)) * 8 + lane % kWords * 4;
        scales[j] = kOnes;
        if (!is_valid(row)) continue;
        mine[j] = cache + (int64_t(row16) * 16 + lane % 4 * 16);
        scales[j] = __ldg(reinterpret_cast<uint32_t const*>(cache + offset));
      }
    }
  }

  // Whether all scales of the warp's rows are simple (attention/fp8.cuh). A pad byte among v4's counts as one, whatever
  // it holds.
  __device__ __forceinline__ bool scales_are_simple(int lane) const {
    bool simple = true;
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      if constexpr (Format::kScaleBytes == 4) {
        simple &= scale_is_simple(__uint_as_float(scales[j]));
      } else {
        uint32_t const bytes = lane % 2 == 0 ? scales[j] : (scales[j] & 0x00ffffff) | 0x01000000;
        simple &= __vminu4(__vmaxu4(bytes, 0x01010101), 0x86868686) == bytes;  // 1 to 134
      }
    }
    return __all_sync(~0u, simple);
  }

  static __device__ __forceinline__ KvCache cache_of(DecodeParams const& params, BlockIndices const& block) {
    return block.selection == 0 ? params.keys[0].cache : params.keys[1].cache;
  }

  __device__ __forceinline__ bool is_valid(int row) const { return valid >> row & 1; }

  // The rows' bytes on their way from memory to L2, a line at a time: each row by the two lanes that hold its index.
  static __device__ __forceinline__ void prefetch(DecodeParams const& params, BlockIndices const& block, int lane) {
    if (!block.exists()) return;
    KvCache const c = cache_of(params, block);
    if (uint32_t(block.index) >= uint32_t(c.slots)) return;
    KvFields const fields = kv_fields<Format>(c.layout, block.index);
    constexpr int kLine = 128, kBytes = Format::kScalesInLine ? Format::kTokenBytes : Format::kNope + Format::kRope * 2,
                  kLines = (kBytes + kLine - 1) / kLine;
    char const* const row = static_cast<char const*>(c.data) + fields.codes;
#pragma unroll
    for (int i = 0; i < (kLines + 1) / 2; ++i) prefetch_line(row + min((lane / 16 + i * 2) * kLine, kBytes - 1));
  }

  // 64 columns of codes from column tile * 64 on: this lane's 16 of its row j.
  __device__ __forceinline__ uint4 load_codes(int tile, int j) const {
    return mine[j] == nullptr ? uint4{0, 0, 0, 0} : load_16B(mine[j] + tile * 64);
  }

  // Of the lane's row j in a tile of 64 columns; all lanes call it. The scale's bits, or v4's byte.
  __device__ __forceinline__ uint32_t scale(int tile, int j, int lane) const {
    if constexpr (Format::kScaleBytes == 4) {
      return __shfl_sync(~0u, scales[j], (lane & ~3) | tile * 64 / Format::kGroup);
    } else {
      return __shfl_sync(~0u, scales[j], (lane & ~3) | tile / 4) >> tile % 4 * 8 & 0xff;
    }
  }
  // 2^120 times it, twice, if it is simple; and as a number.
  static __device__ __forceinline__ uint32_t factor(uint32_t scale) {
    return simple_factor(Format::kScaleBytes == 4 ? scale >> 23 : scale);
  }
  static __device__ __forceinline__ float number(uint32_t scale) {
    return __uint_as_float(Format::kScaleBytes == 4 ? scale : e8m0_to_fp32_bits(scale));
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

// The lane's 16 columns of a row of a tile; `address` is of the first 8.
__device__ __forceinline__ void store_row(uint32_t address, uint2 const (&row)[4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address ^ half * 16), "r"(row[half * 2].x),
                 "r"(row[half * 2].y), "r"(row[half * 2 + 1].x), "r"(row[half * 2 + 1].y)
                 : "memory");
}
__device__ __forceinline__ void store_simple(uint32_t address, uint4 const& codes, uint32_t factor) {
  uint2 const row[4] = {dequantise_simple(codes.x, factor), dequantise_simple(codes.y, factor),
                        dequantise_simple(codes.z, factor), dequantise_simple(codes.w, factor)};
  store_row(address, row);
}
__device__ __forceinline__ void store_any(uint32_t address, uint4 const& codes, float scale) {
  uint2 const row[4] = {dequantise(codes.x, scale), dequantise(codes.y, scale), dequantise(codes.z, scale),
                        dequantise(codes.w, scale)};
  store_row(address, row);
}

}  // namespace dsa::sm90
