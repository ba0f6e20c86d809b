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

// The producer's eight warps fill eight rows of a block each: warp w rows 8 w .. 8 w + 7.
constexpr int kWarpRows = kBlockK / kProducerWarps;
static_assert(kWarpRows == 8);

// Which thread of the producer this is. Of a block it has a quarter of a row: bytes 16 q .. 16 q + 15 of every 64.
class Lane {
 public:
  // (Shuffled, or the compiler would read the special register again and again, which takes long.)
  __device__ __forceinline__ Lane() : thread_(__shfl_sync(~0u, threadIdx.x % (kProducerWarps * 32), threadIdx.x)) {}

  __device__ __forceinline__ int lane() const { return thread_ % 32; }
  __device__ __forceinline__ int warp() const { return thread_ / 32; }
  __device__ __forceinline__ int row() const { return thread_ % 32 / 4; }  // of the warp's
  __device__ __forceinline__ int quarter() const { return thread_ % 4; }
  // Where its first 8 bf16 of a code tile go, in bytes from the tile's first: the 2 q-th 16 bytes of a row.
  __device__ __forceinline__ uint32_t codes_at() const {
    return thread_ / 4 * 128 + ((quarter() * 2) ^ row()) * 16;  // 128-byte swizzle
  }
  // And of a copied tile: the q-th. The (q + 4)-th differ in a bit, 64.
  __device__ __forceinline__ uint32_t copies_at() const { return thread_ / 4 * 128 + (quarter() ^ row()) * 16; }

  // Makes the compiler forget who it is. It would keep whatever can be computed from that over all blocks, for which
  // there are no registers.
  __device__ __forceinline__ void forget() { asm volatile("" : "+r"(thread_)); }

 private:
  uint32_t thread_;
};

constexpr int kBatch = 4;

// What four blocks are: from which cache and for which consumer, four bits each.
struct BatchBlocks {
  static constexpr uint32_t kEnd = 1;  // all that is left of the batch when it has been used up

  uint32_t bits = kEnd << 4 * kBatch;  // of the next block, in the lowest; 0: there is none

  __device__ __forceinline__ bool empty() const { return bits == kEnd; }
  // Of the next block: what it is, and which of the batch.
  __device__ __forceinline__ uint32_t what() const { return bits & 15; }
  __device__ __forceinline__ int number() const { return kBatch - (31 - __clz(int(bits))) / 4; }
  __device__ __forceinline__ void pass() { bits >>= 4; }

  __device__ __forceinline__ void add(int i, int selection, int consumer) {
    bits |= (1u | selection << 1 | consumer << 2) << i * 4;
  }
  static __device__ __forceinline__ bool second_cache(uint32_t block) { return block & 2; }
};

// A warp's rows of four blocks, in shared memory: row r of block i at 8 i + r.
template <class Format>
struct BatchRows {
  static constexpr uint32_t kMasked = ~0u;

  uint32_t at16[kBatch * kWarpRows];  // places in the cache, in 16 bytes; kMasked: the row does not count
  uint32_t scales_at8[Format::kScalesInLine ? 1 : kBatch * kWarpRows];  // of its scales, in 8 bytes
  BatchBlocks later;                                                    // what the next four are
};

// Blocks whose indices are on their way: lane l has row 8 w + l % 8 of block l / 8.
template <class Format>
struct BatchIndices {
  int index = -1;

  template <class Walk>
  __device__ __forceinline__ void load(DecodeParams const& params, Walk& walk, BatchRows<Format>& rows,
                                       Lane const& self) {
    BatchBlocks blocks;
    KeyBlock mine{nullptr, 0, 0};
    auto cursor = walk.fetch(self.warp());
#pragma unroll 1
    for (int i = 0; i < kBatch; ++i) {
      KeyBlock block;
      int consumer;
      if (!cursor.next(params, block, consumer)) break;
      blocks.add(i, block.selection, consumer);
      if (self.lane() / kWarpRows == i) mine = block;
    }
    if (self.lane() == 0) rows.later = blocks;
    walk.put(self.warp(), self.lane(), cursor);
    int const place = self.warp() * kWarpRows + self.lane() % kWarpRows;
    index = place < mine.count ? __ldg(mine.idx + place) : -1;
  }

  // From indices to places; returns what the blocks are.
  __device__ __forceinline__ BatchBlocks resolve(DecodeParams const& params, BatchRows<Format>& rows,
                                                 Lane const& self) const {
    __syncwarp();  // what they are is written, and nobody reads the rows of the batch before
    BatchBlocks const blocks = rows.later;
    rows.at16[self.lane()] = BatchRows<Format>::kMasked;
    bool const second = BatchBlocks::second_cache(blocks.bits >> self.lane() / kWarpRows * 4);
    KvCache const c = second ? params.keys[1].cache : params.keys[0].cache;
    if (uint32_t(index) < uint32_t(c.slots)) {
      KvFields const fields = kv_fields<Format>(c.layout, index);
      rows.at16[self.lane()] = uint32_t(fields.codes >> 4);
      if constexpr (!Format::kScalesInLine) rows.scales_at8[self.lane()] = uint32_t(fields.scales >> 3);
    }
    __syncwarp();
    return blocks;
  }
};

// One block's rows, as a thread sees them: its quarter of row 8 w + l / 4.
template <class Format>
struct BlockRows {
  using Batch = BatchRows<Format>;
  // Scales are fetched by words: all of v32's four, or the two that hold v4's bytes.
  static constexpr int kWords = Format::kScaleBytes == 4 ? 4 : 2;

  static constexpr uint32_t kCounts = 16;
  // The exponent whose factor is -0: rows that do not count become 0.
  static constexpr uint32_t kZeroExponent = 136;
  static_assert(simple_factor(kZeroExponent) == 0x80008000);

  uint32_t what = 0;   // as in BatchBlocks, 0: there is no block; and kCounts if the row counts
  char const* mine;    // the thread's bytes of its first code tile
  uint32_t word;       // of the row's scales, the (l % kWords)-th
  uint32_t exponents;  // of v32's scales, biased, a byte each; once they are spread

  __device__ __forceinline__ bool exists() const { return what != 0; }
  __device__ __forceinline__ int consumer() const { return what >> 2 & 1; }
  __device__ __forceinline__ bool counts() const { return what & kCounts; }

  // The next of a batch.
  __device__ __forceinline__ void open(DecodeParams const& params, BatchBlocks const& blocks, Batch const& batch,
                                       Lane const& self) {
    int const at = blocks.number() * kWarpRows + self.row();
    what = blocks.what();
    uint32_t const at16 = exists() ? batch.at16[at] : Batch::kMasked;
    if (at16 != Batch::kMasked) what |= kCounts;
    // In place of a row that does not count the first of q's, which is as long, is read, and is not looked at.
    KvCache const& c = BatchBlocks::second_cache(what) ? params.keys[1].cache : params.keys[0].cache;
    auto const* const cache = static_cast<char const*>(c.data);
    auto const* const any = static_cast<char const*>(params.q);
    mine = (counts() ? cache + uint64_t(at16) * 16 : any) + uint32_t(self.quarter() * 16);
    if constexpr (Format::kNope > 0) {
      char const* words;
      if constexpr (Format::kScalesInLine)
        words = mine + (Format::kScalesAt - uint32_t(self.quarter() * 16));
      else
        words = counts() ? cache + uint64_t(batch.scales_at8[at]) * 8 : any;
      word = __ldg(reinterpret_cast<uint32_t const*>(words + uint32_t(self.lane() % kWords * 4)));
    }
    if (counts()) {  // on their way from memory to L2, a line at a time
      constexpr int kLine = 128,
                    kBytes = Format::kScalesInLine ? Format::kTokenBytes : Format::kNope + Format::kRope * 2;
      auto const* const first = cache + uint64_t(at16) * 16;
#pragma unroll
      for (int i = 0; i < kBytes; i += 4 * kLine)
        prefetch_line(first + min(uint32_t(self.quarter() * kLine) + i, uint32_t(kBytes - 1)));
    }
  }

  // Whether all scales of the warp's rows are simple (attention/fp8.cuh); a pad byte among v4's counts as one, whatever
  // it holds. Before the block is filled, v32's are spread over the row's lanes: a shuffle between the stores would
  // wait for those that are queued. (v4's eight bytes are more than there are registers for.)
  __device__ __forceinline__ bool spread_scales(Lane const& self) {
    bool simple;
    if constexpr (Format::kScaleBytes == 4) {
      simple = scale_is_simple(__uint_as_float(word));
      uint32_t some = word >> 23 << self.quarter() * 8;
      some |= __shfl_xor_sync(~0u, some, 1);
      exponents = some | __shfl_xor_sync(~0u, some, 2);
      if (!counts()) exponents = kZeroExponent * 0x01010101;
    } else {
      uint32_t const bytes = self.lane() % 2 == 0 ? word : (word & 0x00ffffff) | 0x01000000;
      simple = __vminu4(__vmaxu4(bytes, 0x01010101), 0x86868686) == bytes;  // 1 to 134
    }
    return __all_sync(~0u, !counts() || simple);
  }

  // Bit r: row 8 w + r counts.
  __device__ __forceinline__ uint32_t valid_rows() const {
    uint32_t rows = __ballot_sync(~0u, counts()) & 0x11111111;  // of quads
    rows = (rows | rows >> 3) & 0x03030303;
    rows = (rows | rows >> 6) & 0x000f000f;
    return (rows | rows >> 12) & 0xff;
  }

  // 64 columns of codes from column tile * 64 on: this thread's 16.
  __device__ __forceinline__ uint4 load_codes(int tile) const { return load_16B(mine + tile * 64); }

  // Copies 64 bf16 columns, which begin `byte` bytes into the rows, into a swizzled tile.
  __device__ __forceinline__ void copy_tile(uint32_t tile, int byte, Lane const& self) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) gather_16B((tile + self.copies_at()) ^ i * 64, mine + byte + i * 64, counts());
  }

  // Which of a row's scales is that of a tile of 64 columns.
  static constexpr int group(int tile) { return tile * 64 / Format::kGroup; }
  // 2^120 times it, twice, if it is simple. All lanes call it.
  __device__ __forceinline__ uint32_t factor(int group, Lane const& self) const {
    return simple_factor(exponent(group, self));
  }
  // Any scale, as a number, 0 in rows that do not count. (v32's is read again: its exponent is not all of it.) All
  // lanes call it.
  __device__ __forceinline__ float scale(int group, Lane const& self) const {
    if constexpr (Format::kScaleBytes == 4) {
      auto const* const scales = mine + Format::kScalesAt - self.quarter() * 16;
      return counts() ? __ldg(reinterpret_cast<float const*>(scales) + group) : 0.f;
    } else {
      uint32_t const bits = e8m0_to_fp32_bits(exponent(group, self));
      return counts() ? __uint_as_float(bits) : 0.f;
    }
  }

 private:
  __device__ __forceinline__ uint32_t exponent(int group, Lane const& self) const {
    if constexpr (Format::kScaleBytes == 4) {
      return exponents >> group * 8 & 0xff;
    } else {
      uint32_t const four = __shfl_sync(~0u, word, (self.lane() & ~3) | group / 4);
      return counts() ? four >> group % 4 * 8 & 0xff : kZeroExponent;
    }
  }
};

// A lane's 16 columns of a row of a tile, as bf16.
struct RowPiece {
  uint2 four[4];

  __device__ __forceinline__ void convert_simple(uint4 const& codes, uint32_t factor) {
    four[0] = dequantise_simple(codes.x, factor);
    four[1] = dequantise_simple(codes.y, factor);
    four[2] = dequantise_simple(codes.z, factor);
    four[3] = dequantise_simple(codes.w, factor);
  }
  __device__ __forceinline__ void convert_any(uint4 const& codes, float scale) {
    four[0] = dequantise(codes.x, scale);
    four[1] = dequantise(codes.y, scale);
    four[2] = dequantise(codes.z, scale);
    four[3] = dequantise(codes.w, scale);
  }
  // `address` is of the first 8.
  __device__ __forceinline__ void store(uint32_t address) const {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address ^ half * 16), "r"(four[half * 2].x),
                   "r"(four[half * 2].y), "r"(four[half * 2 + 1].x), "r"(four[half * 2 + 1].y)
                   : "memory");
  }
};

}  // namespace dsa::sm90
