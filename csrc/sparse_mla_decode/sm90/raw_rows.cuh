// A block's codes as they come, in shared memory, and the warpgroup that fetches them there.
//
// A row is fetched by one bulk copy. (Loads of 64 bytes of a row each, from eight warps, wait in the queues of shared
// memory, and the more of them are on their way, the slower they are.) Starting a copy takes a warp some 50 cycles, and
// finding a row as long as converting it: so both are done by warps of their own.
//
//   a block ahead   its indices are loaded
//   then            its rows are found
//   then            for each of its producer warps, when there is room: what it must know is written, and copies of
//                   codes (with v32's scales) begin
#pragma once

#include "arch/any/bulk_copy.cuh"
#include "rows.cuh"

namespace dsa::sm90 {

constexpr int kFetchWarps = 4, kFetchRows = kBlockK / kFetchWarps;
constexpr int kFedWarps = kProducerWarps / kFetchWarps;  // that one warp fetches for
static_assert(kFetchRows == kFedWarps * kWarpRows);

// Two rows of a block. They are 64 bytes more than a multiple of 128 apart: a quarter of a warp reads 64 bytes of each,
// without bank conflicts.
template <class Format>
struct RawPair {
  static constexpr bool kHasScales = Format::kScalesInLine;
  static constexpr int kBytes = Format::kNope + (kHasScales ? Format::kGroups * Format::kScaleBytes : 0);
  static constexpr int kApart = (kBytes + 63) / 128 * 128 + 64;

  alignas(16) uint8_t bytes[kApart + kBytes];

  __device__ __forceinline__ uint8_t* row(int r) { return bytes + r * kApart; }
};

// Of a row.
template <class Format>
using RawScales = std::conditional_t<Format::kScalesInLine, uint4, uint2>;

// A fetching warp has room for kSlots times the eight rows of a producer warp, which its warps get by turns.
//
//   barrier          arrives                                                      waits
//   full, of a warp  a fetching thread, when all else is written, + bytes         the producer warp, before it reads
//   empty, of a slot the producer warp that had it, when it has read              the fetching warp
//
// (A warp's full barriers are for its blocks by turns. One of a slot would be waited for by two warps, each of which
// does not know what the other has seen.)
template <class Format, int kSlots_>
struct RawRows {
  using Pair = RawPair<Format>;
  // What a slot holds, in bits: BlockKind's (none where there are no blocks); whether it is the last; which rows count.
  static constexpr uint32_t kIsLast = 8;
  static constexpr int kCountBits = 8;
  static constexpr int kSlots = kSlots_;

  Pair pair[kFetchWarps][kSlots][kWarpRows / 2];
  char const* place[kFetchWarps][kSlots][kWarpRows];                          // of rows in their caches
  uint2 other_scales[kFetchWarps][kSlots][Pair::kHasScales ? 1 : kWarpRows];  // v4's
  uint32_t kind[kFetchWarps][kSlots];
  Barrier full[kProducerWarps][2], empty[kFetchWarps][kSlots];

  // By one thread, before __syncthreads.
  __device__ __forceinline__ void init() {
    for (int i = 0; i < kProducerWarps * 2; ++i) full[i / 2][i % 2].init(1);
    for (int i = 0; i < kFetchWarps * kSlots; ++i) empty[i / kSlots][i % kSlots].init(1);
  }
};

// A warp's way round the slots.
template <int kSlots>
struct RawSlot {
  uint32_t slot, round = 0;

  __device__ __forceinline__ explicit RawSlot(uint32_t first) : slot(first) {}
  __device__ __forceinline__ void pass(uint32_t slots) {
    slot += slots;
    if (slot >= kSlots) {
      slot -= kSlots;
      ++round;
    }
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

template <class Format, int kSlots, class Walk>
__device__ __forceinline__ void fetch_blocks(DecodeParams const& params, Walk walk, RawRows<Format, kSlots>& raw) {
  using Raw = RawRows<Format, kSlots>;
  FetchLane const self;
  int const warp = self.warp();
  RawSlot<kSlots> at(0);
  int index;
  uint32_t next = walk.take(params, self, index), turn = 0;
  do {
    uint32_t const block = next;
    CacheRow<Format> const row(params, block, index);
    if (next != 0) next = walk.take(params, self, index);
    uint32_t const counted = __ballot_sync(~0u, row.counts && self.is_first());
    uint2 other_scales = {};
    if constexpr (!Raw::Pair::kHasScales)
      if (row.counts && self.is_first()) other_scales = __ldg(reinterpret_cast<uint2 const*>(row.scales()));
    CUTE_UNROLL
    for (int fed = 0; fed < kFedWarps; ++fed) {
      // All slots start out empty. Where there is room for one block, its slots come free together. (What follows could
      // be written before the wait, in places of its own: that made 128 and more requests 2 % slower.)
      constexpr bool kTogether = kSlots == kFedWarps;
      if (at.round > 0 && (fed == 0 || !kTogether)) {
        CUTE_UNROLL
        for (int i = 0; i < (kTogether ? kFedWarps : 1); ++i) raw.empty[warp][at.slot + i].wait(~at.round & 1);
        cutlass::arch::fence_view_async_shared();  // it has been read the usual way
      }
      if (self.lane() / kWarpRows == fed) {
        int const r = self.lane() % kWarpRows;
        // In place of a row that does not count the first of q's, which is as long, is read, and is not looked at.
        raw.place[warp][at.slot][r] = row.counts ? row.codes() : static_cast<char const*>(params.q);
        if constexpr (!Raw::Pair::kHasScales) raw.other_scales[warp][at.slot][r] = other_scales;
      }
      uint32_t const rows = counted >> fed * kWarpRows & ((1 << kWarpRows) - 1);
      if (self.lane() == 0) raw.kind[warp][at.slot] = block | (next == 0 ? Raw::kIsLast : 0) | rows << Raw::kCountBits;
      __syncwarp();
      // (One thread starts all copies: by each lane they would take a turn of a loop each.)
      if (cute::elect_one_sync()) {
        Barrier& full = raw.full[warp * kFedWarps + fed][turn];
        full.arrive_and_expect_tx(block == 0 ? 0 : kWarpRows * Raw::Pair::kBytes);  // (before the copies begin)
        if (block != 0) {
          char const* place[kWarpRows];
          CUTE_UNROLL
          for (int r = 0; r < kWarpRows; ++r) place[r] = raw.place[warp][at.slot][r];
          CUTE_UNROLL
          for (int r = 0; r < kWarpRows; ++r)
            copy_bulk(raw.pair[warp][at.slot][r / 2].row(r % 2), place[r], Raw::Pair::kBytes, full);
        }
      }
      at.pass(1);
    }
    turn ^= 1;
  } while (next != 0);
}

}  // namespace dsa::sm90
