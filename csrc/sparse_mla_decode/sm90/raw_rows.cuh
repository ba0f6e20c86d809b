// A block's codes as they come, in shared memory, and the warpgroup that fetches them there.
//
// A row is fetched by one bulk copy. (Loads of 64 bytes of a row each, from eight warps, are behind the queues of
// shared memory and twice as many requests to L2, whose two halves then exchange as much as they can.) Starting a copy
// takes a warp some 50 cycles, and finding a row as long as converting it: so both are done by warps of their own.
//
//   a block ahead   its indices are loaded
//   then            its rows are found; places of rows, v4's scales and what the block is are written
//   then            when the block before has been read: copies of codes (with v32's scales) begin
#pragma once

#include "arch/any/bulk_copy.cuh"
#include "rows.cuh"

namespace dsa::sm90 {

constexpr int kFetchWarps = 4, kFetchRows = kBlockK / kFetchWarps;

// A row of the block. What its warp writes about it has two places, by turns, so that it can be written before the
// block before has been read. Rows are 64 bytes more than a multiple of 128 apart: two of them, which a quarter of a
// warp reads, have no bank conflicts.
template <class Format>
struct RawRow {
  static constexpr bool kHasScales = Format::kScalesInLine;
  static constexpr int kBytes = Format::kNope + (kHasScales ? Format::kGroups * Format::kScaleBytes : 0);
  using Scales = std::conditional_t<kHasScales, uint4, uint2>;

  alignas(64) uint8_t bytes[kBytes];
  char const* place[2];                    // of the row in its cache
  uint2 other_scales[kHasScales ? 1 : 2];  // v4's
  static constexpr int kUsed = kBytes + sizeof(place) + sizeof(other_scales);
  uint8_t unused[(kUsed + 63) / 128 * 128 + 64 - kUsed];

  __device__ __forceinline__ Scales const& scales(uint32_t turn) const {
    if constexpr (kHasScales)
      return *reinterpret_cast<Scales const*>(bytes + Format::kScalesAt);
    else
      return other_scales[turn];
  }
};

// Of each fetching warp there is a part, with two barriers:
//   full    a thread, when the warp has written the rest, + bytes of its rows    producer warps, before they read
//   empty   the producer warps of its rows, when they have read                  the fetching warp
template <class Format>
struct RawBlock {
  static constexpr int kRowBits = 16;
  RawRow<Format> row[kBlockK];
  // By turns, too: BlockKind's bits, 0 if no block comes any more; from kRowBits on, which rows count.
  uint32_t kind[kFetchWarps][2];
  Barrier full[kFetchWarps], empty[kFetchWarps];
  static_assert(sizeof(RawRow<Format>) % 128 == 64);

  // By one thread, before __syncthreads.
  __device__ __forceinline__ void init() {
    for (Barrier& b : full) b.init(1);
    for (Barrier& b : empty) b.init(kProducerWarps / kFetchWarps);
  }
};

// Which thread of the fetching warpgroup this is. Two lanes have each row.
class FetchLane {
 public:
  __device__ __forceinline__ FetchLane() : thread_(__shfl_sync(~0u, threadIdx.x % (kFetchWarps * 32), threadIdx.x)) {}

  __device__ __forceinline__ int lane() const { return thread_ % 32; }
  __device__ __forceinline__ int warp() const { return thread_ / 32; }
  __device__ __forceinline__ int place() const { return warp() * kFetchRows + lane() % kFetchRows; }
  __device__ __forceinline__ bool is_first() const { return lane() < kFetchRows; }

 private:
  uint32_t thread_;
};

template <class Format, class Walk>
__device__ __forceinline__ void fetch_blocks(DecodeParams const& params, Walk walk, RawBlock<Format>& raw) {
  using Row = RawRow<Format>;
  FetchLane const self;
  Barrier& full = raw.full[self.warp()];
  auto& rows = reinterpret_cast<Row(&)[kFetchRows]>(raw.row[self.warp() * kFetchRows]);
  int index;
  uint32_t next = walk.take(params, self, index), turn = 0;
  for (;; turn ^= 1) {
    uint32_t const block = next;
    CacheRow<Format> const row(params, block, index);
    if (next != 0) next = walk.take(params, self, index);
    uint32_t const counted = __ballot_sync(~0u, row.counts && self.is_first());
    if (self.is_first()) {
      // In place of a row that does not count the first of q's, which is as long, is read, and is not looked at.
      rows[self.lane()].place[turn] = row.counts ? row.codes() : static_cast<char const*>(params.q);
      if constexpr (!Row::kHasScales)
        if (row.counts) rows[self.lane()].other_scales[turn] = __ldg(reinterpret_cast<uint2 const*>(row.scales()));
    }
    if (self.lane() == 0) raw.kind[self.warp()][turn] = block | counted << RawBlock<Format>::kRowBits;
    __syncwarp();
    // (One thread starts all copies: by each lane they would take a turn of a loop each.)
    bool const elected = cute::elect_one_sync();
    char const* place[kFetchRows];
    CUTE_UNROLL
    for (int r = 0; r < kFetchRows; ++r) place[r] = rows[r].place[turn];

    raw.empty[self.warp()].wait(turn ^ 1);     // it starts out empty
    cutlass::arch::fence_view_async_shared();  // it has been read the usual way
    if (elected) {
      full.arrive_and_expect_tx(block == 0 ? 0 : kFetchRows * Row::kBytes);  // (before the copies begin)
      if (block != 0) {
        CUTE_UNROLL
        for (int r = 0; r < kFetchRows; ++r) copy_bulk(rows[r].bytes, place[r], Row::kBytes, full);
      }
    }
    if (block == 0) break;
  }
}

}  // namespace dsa::sm90
