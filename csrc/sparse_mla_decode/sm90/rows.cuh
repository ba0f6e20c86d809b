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

// Not before what precedes it, as the compiler would have it.
__device__ __forceinline__ uint32_t load_4B_now(uint32_t const* address) {
  uint32_t x;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(x) : "l"(address) : "memory");
  return x;
}

// Until x, which is being loaded, is there. (Not a wait that the compiler could move: it may sleep.)
__device__ __forceinline__ void await(int x) {
  asm volatile("{\n.reg .pred p;\nsetp.eq.s32 p, %0, 0x80000001;\n@p nanosleep.u32 0;\n}" ::"r"(x) : "memory");
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
  __device__ __forceinline__ int place() const { return warp() * kWarpRows + row(); }  // of its row in the block
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

// What a block is, in bits: 0 if there is none.
struct BlockKind {
  static constexpr uint32_t kExists = 1, kSecondCache = 2, kOddConsumer = 4;

  static __device__ __forceinline__ uint32_t of(KeyRun const& run, int consumer) {
    return kExists | uint32_t(run.selection) * kSecondCache | uint32_t(consumer) * kOddConsumer;
  }
};

// The thread's index in the next block of a run: -1 if its key does not count.
template <class Thread>
__device__ __forceinline__ int load_index(KeyRun const& run, Thread const& self) {
  return self.place() < run.count ? __ldg(run.idx + self.place()) : -1;
}

// Has the indices of a run's first blocks fetched into L2, 32 by each of so many threads: before the kernel before has
// ended, too, as nothing is read.
__device__ __forceinline__ void prefetch_indices(KeyRun const& run, int thread) {
  int const place = thread * 32;
  if (place < min(run.blocks * kBlockK, run.count)) prefetch_line(run.idx + place);
}

// The cache row of a key, for a block that a walk gave.
template <class Format>
struct CacheRow {
  bool counts;
  char const* cache;
  KvFields fields;

  __device__ __forceinline__ CacheRow(DecodeParams const& params, uint32_t block, int index) {
    bool const second = block & BlockKind::kSecondCache;
    KvCache const& c = second ? params.keys[1].cache : params.keys[0].cache;
    counts = uint32_t(index) < uint32_t(c.slots);
    int page, place;
    (second ? params.pages[1] : params.pages[0])(page, place, index);
    fields = Format::fields(c.layout, page, place);
    cache = static_cast<char const*>(c.data);
  }
  __device__ __forceinline__ char const* codes() const { return cache + fields.codes; }
  __device__ __forceinline__ char const* scales() const { return cache + fields.scales; }
};

// The exponent whose factor is -0: rows that do not count become 0.
constexpr uint32_t kZeroExponent = 136;
static_assert(simple_factor(kZeroExponent) == 0x80008000);

// Of a warp's eight rows, four lanes each; bit r: row r counts.
__device__ __forceinline__ uint32_t valid_rows(bool counts) {
  uint32_t rows = __ballot_sync(~0u, counts) & 0x11111111;  // of quads
  rows = (rows | rows >> 3) & 0x03030303;
  rows = (rows | rows >> 6) & 0x000f000f;
  return (rows | rows >> 12) & 0xff;
}

// Copies 64 bf16 columns of a row, `from` on, into a swizzled tile.
__device__ __forceinline__ void copy_tile(uint32_t tile, char const* from, bool counts, Lane const& self) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
    gather_16B((tile + self.copies_at()) ^ i * 64, from + self.quarter() * 16 + i * 64, counts);
}

// Where a producer warp is in the work of its CTA: the blocks of one worker, or of the two consumers by turns. The
// walks lie in shared memory: they are needed once a run, and registers are scarce.
template <int kWorkers>
class LineWalk {
 public:
  struct Walks {
    KeyWalk of[kWorkers];
  };

  template <int kWarps>
  __device__ __forceinline__ LineWalk(DecodeRange const (&ranges)[kWorkers], Walks (&walks)[kWarps])
      : walks_(walks[threadIdx.x / 32 % kWarps]) {
    if (threadIdx.x % 32 < kWorkers) walks_.of[threadIdx.x % 32] = KeyWalk(ranges[threadIdx.x % 32]);
    __syncwarp();
  }

  // What the next block is, and this thread's index in it.
  template <class Thread>
  __device__ __forceinline__ uint32_t take(DecodeParams const& params, Thread const& self, int& index) {
    for (int i = 0; i < kWorkers; ++i) {
      if constexpr (kWorkers == 2) {
        KeyRun const other = runs_[1];
        runs_[1] = runs_[0];
        runs_[0] = other;
        turn_ ^= 1;
      }
      if (runs_[0].blocks == 0) open_run(params, self);
      if (runs_[0].blocks == 0) continue;
      index = load_index(runs_[0], self);
      uint32_t const kind = BlockKind::of(runs_[0], turn_);
      runs_[0].pass();
      return kind;
    }
    index = -1;
    return 0;
  }

 private:
  template <class Thread>
  __device__ __forceinline__ void open_run(DecodeParams const& params, Thread const& self) {
    KeyWalk walk = walks_.of[turn_];
    __syncwarp();  // all lanes have it
    runs_[0] = walk.next_run(params);
    if (self.lane() == 0) walks_.of[turn_] = walk;
    __syncwarp();
  }

  Walks& walks_;
  KeyRun runs_[kWorkers];    // the latest one's, and the other's
  int turn_ = kWorkers - 1;  // whose the latest is
};

// One block's rows, as a thread sees them: its quarter of row 8 w + l / 4.
template <class Format>
struct BlockRows {
  // Scales are fetched by words: all of v32's four, or the two that hold v4's bytes.
  static constexpr int kWords = Format::kScaleBytes == 4 ? 4 : 2;

  static constexpr uint32_t kCounts = 8;

  uint32_t kind = 0;             // BlockKind's bits, and kCounts if the row counts
  char const* mine;              // the thread's bytes of its first code tile
  char const* scales_elsewhere;  // v4's
  uint32_t word;                 // of the row's scales, the (l % kWords)-th
  uint32_t exponents;            // of v32's scales, biased, a byte each; once they are spread

  __device__ __forceinline__ bool exists() const { return kind != 0; }
  __device__ __forceinline__ int consumer() const { return kind / BlockKind::kOddConsumer & 1; }
  __device__ __forceinline__ bool counts() const { return kind & kCounts; }

  // A block that a walk gave, with this thread's index.
  __device__ __forceinline__ void open(DecodeParams const& params, uint32_t block, int index, Lane const& self) {
    CacheRow<Format> const row(params, block, index);
    kind = block | (row.counts ? kCounts : 0);
    // In place of a row that does not count the first of q's, which is as long, is read, and is not looked at.
    auto const* const any = static_cast<char const*>(params.q);
    mine = (counts() ? row.codes() : any) + uint32_t(self.quarter() * 16);
    if constexpr (Format::kNope > 0 && !Format::kScalesInLine) scales_elsewhere = counts() ? row.scales() : any;
  }

  // Where this thread's word of its scales lies.
  __device__ __forceinline__ uint32_t const* word_at(Lane const& self) const {
    char const* words;
    if constexpr (Format::kScalesInLine)
      words = mine + (Format::kScalesAt - uint32_t(self.quarter() * 16));
    else
      words = scales_elsewhere;
    return reinterpret_cast<uint32_t const*>(words + uint32_t(self.lane() % kWords * 4));
  }

  // Has the row's bytes fetched from memory to L2, a line at a time.
  __device__ __forceinline__ void prefetch(Lane const& self) const {
    if (!counts()) return;
    constexpr int kLine = 128, kBytes = Format::kScalesInLine ? Format::kTokenBytes : Format::kNope + Format::kRope * 2;
    auto const* const first = mine - uint32_t(self.quarter() * 16);
#pragma unroll
    for (int i = 0; i < kBytes; i += 4 * kLine)
      prefetch_line(first + min(uint32_t(self.quarter() * kLine) + i, uint32_t(kBytes - 1)));
  }
  // And its scales, where they do not lie in it.
  __device__ __forceinline__ void prefetch_scales(Lane const& self) const {
    if constexpr (Format::kNope > 0 && !Format::kScalesInLine)
      if (counts() && self.quarter() == 0) prefetch_line(scales_elsewhere);
  }

  // Whether all scales of the warp's rows are simple (attention/fp8.cuh); a pad byte among v4's counts as one, whatever
  // it holds. Before the block is filled, v32's are spread over the row's lanes: a shuffle between the stores would
  // wait for those that are queued. (v4's eight bytes are more than there are registers for.)
  __device__ __forceinline__ bool spread_scales(Lane const& self) {
    bool simple;
    if constexpr (Format::kScaleBytes == 4) {
      simple = scales_are_simple({word});
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
  __device__ __forceinline__ uint32_t valid_rows() const { return sm90::valid_rows(counts()); }

  // 64 columns of codes from column tile * 64 on: this thread's 16.
  __device__ __forceinline__ uint4 load_codes(int tile) const { return load_16B(mine + tile * 64); }

  // Copies 64 bf16 columns, which begin `byte` bytes into the rows, into a swizzled tile.
  __device__ __forceinline__ void copy_tile(uint32_t tile, int byte, Lane const& self) const {
    sm90::copy_tile(tile, mine - uint32_t(self.quarter() * 16) + byte, counts(), self);
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
  // The first 8 columns, and the other 8. (Swizzled, their addresses differ in a bit, 16.)
  __device__ __forceinline__ void store(uint32_t first, uint32_t second) const {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(half == 0 ? first : second), "r"(four[half * 2].x),
                   "r"(four[half * 2].y), "r"(four[half * 2 + 1].x), "r"(four[half * 2 + 1].y)
                   : "memory");
  }
  __device__ __forceinline__ void store(uint32_t first) const { store(first, first ^ 16); }
};

}  // namespace dsa::sm90
