// How a tile of keys comes into shared memory: from a row of keys, or from the pages of a cache. By one warp.
//
//   open(block, unit, t)  before the tiles of a unit, of which tile t is this warp's first, and every kTurns'th its own
//   load(stage, key)      its next tile, which begins with this key: each lane's arrival at full[stage] when its copies
//                         land, and the first lane's with the bytes that TMA brings
#pragma once

#include <cuda.h>
#include <cutlass/arch/barrier.h>

#include <cute/arch/copy_sm90_tma.hpp>
#include <type_traits>

#include "indexer_logits/schedule.cuh"

namespace dsa::indexer {

using Barrier = cutlass::arch::ClusterTransactionBarrier;

// Copies kBytes (4 or 16), or writes zeros and reads nothing if `valid` is false.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* smem_dst, void const* src, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(cute::cast_smem_ptr_to_uint(smem_dst)), "l"(src),
               "n"(kBytes), "r"(valid ? kBytes : 0)
               : "memory");
}

__device__ __forceinline__ void arrive_after_copies(Barrier& barrier) {
  cutlass::arch::cpasync_barrier_arrive_noinc(reinterpret_cast<uint64_t*>(&barrier));
}

template <class Config>
struct RaggedLoader {
  using Shared = typename Config::SharedStorage;

  IndexerKeys const& keys;
  int const count;
  CUtensorMap const& map;
  Shared& smem;
  int const lane;

  template <class Params>
  __device__ __forceinline__ RaggedLoader(Params const& params, CUtensorMap const& map, Shared& smem, int lane)
      : keys(params.keys), count(params.queries.columns), map(map), smem(smem), lane(lane) {}

  __device__ __forceinline__ void open(int, Unit const&, int) {}

  __device__ __forceinline__ void load(int stage, int key) {
    Barrier& full = smem.full[stage];
    if (lane == 0) {
      smem.valid[stage] = ~0u;
      full.arrive_and_expect_tx(Config::kTileBytes);
      cute::SM90_TMA_LOAD_2D::copy(&map, reinterpret_cast<uint64_t*>(&full),
                                   static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL), smem.keys(stage), 0,
                                   key);
    }
    CUTE_UNROLL
    for (int i = lane; i < kTileKeys; i += 32) {
      bool const exists = key + i < count;
      copy_async<4>(&smem.scale[stage][i], keys.scale + (exists ? (key + i) * keys.scale_stride : 0), exists);
    }
    arrive_after_copies(full);
  }
};

// The largest power of two of keys that divides a page, up to half a tile; at least kGroupKeys (why_unsupported).
__host__ __device__ __forceinline__ int keys_of_box(int page_size) {
  int const power = page_size & -page_size;
  return power < kTileKeys / 2 ? power : kTileKeys / 2;
}
__device__ __forceinline__ int log2_of(int power) { return __ffs(power) - 1; }

// Of keys that come as `Params` have them: how many lie in one box, and so have one bit in smem.valid.
template <class Params>
__device__ __forceinline__ int log2_box(Params const& params) {
  if constexpr (std::is_same_v<typename Params::Ranges, PagedRanges>)
    return log2_of(keys_of_box(params.keys.page_size));
  else
    return log2_of(kTileKeys);
}

// A tile is kTileKeys / box boxes of keys that lie in one page each. The block table is read for 32 boxes at a time,
// one a lane, which then loads its box; a box without a page has page -1, where TMA finds zeros and reads nothing. The
// entries for the next 32 boxes are read ahead. What a tile takes is kept short: consumer warps share the scheduler.
template <class Config, int kTurns>
struct PagedLoader {
  using Shared = typename Config::SharedStorage;
  static_assert(32 % (kTurns * kTileKeys / kGroupKeys) == 0);

  PagedIndexerKeys const& keys;
  Blocks<PagedRanges> const& blocks;
  CUtensorMap const& map;
  Shared& smem;
  int const lane;
  int const shift;  // a box is 1 << shift keys
  int const boxes, boxes_of_page;
  int const scale_box;  // of a tile's boxes, the one with the four keys whose scales this lane copies
  uint64_t const hint;  // keys that no other block reads leave L2 first: 3 % of a long call
  int32_t const* table;
  int end;                // of the boxes that some query sees; entries of the table past it are not read
  int at, before;         // box that lane 0 has, and how many lanes have boxes of tiles before
  int page, row;          // of this lane's box: its page, and its first key there
  uint32_t exist;         // bit i: box at + i has a page
  uint8_t const* scales;  // of this lane's box
  int next_entry;         // as the table has it: what is not looked at need not have come

  template <class Params>
  __device__ __forceinline__ PagedLoader(Params const& params, CUtensorMap const& map, Shared& smem, int lane)
      : keys(params.keys),
        blocks(params.blocks),
        map(map),
        smem(smem),
        lane(lane),
        shift(log2_box(params)),
        boxes(kTileKeys >> shift),
        boxes_of_page(keys.page_size >> shift),
        scale_box(4 * lane >> shift),
        hint(uint64_t(blocks.per_batch > 1 ? cute::TMA::CacheHintSm90::EVICT_NORMAL
                                           : cute::TMA::CacheHintSm90::EVICT_FIRST)) {}

  __device__ __forceinline__ void open(int block, Unit const& unit, int first_tile) {
    table = keys.block_table + blocks.batch_of(block) * keys.table_stride_batch;
    end = ((unit.end_key - 1) >> shift) + 1;
    at = (unit.first_key + first_tile * kTileKeys) >> shift;
    before = 0;
    int const entry = entry_of(at + lane);
    take(entry);
  }

  __device__ __forceinline__ void load(int stage, int) {
    if (before == 32) {
      at += 32;
      before = 0;
      take(next_entry);
    }
    Barrier& full = smem.full[stage];
    if (lane == 0) {
      smem.valid[stage] = exist >> before;
      full.arrive_and_expect_tx(Config::kTileBytes);
    }
    // (Boxes may land before they are announced.)
    int const box = lane - before;
    if (unsigned(box) < unsigned(boxes))
      cute::SM90_TMA_LOAD_3D::copy(&map, reinterpret_cast<uint64_t*>(&full), hint,
                                   smem.keys(stage) + (box << shift) * Config::kDim, 0, row, page);
    int const from = before + scale_box;
    auto const* const scale = reinterpret_cast<uint8_t const*>(__shfl_sync(~0u, uint64_t(scales), from)) +
                              ((4 * lane & ((1 << shift) - 1)) * int(sizeof(float)));
    copy_async<16>(&smem.scale[stage][4 * lane], scale, exist >> from & 1);
    arrive_after_copies(full);
    before += kTurns * boxes;
  }

 private:
  // The entry of box at + lane; and reads the one after the next.
  __device__ __forceinline__ void take(int entry) {
    next_entry = entry_of(at + 32 + lane);
    page = entry >= 0 && entry < keys.pages ? entry : -1;
    row = boxes_of_page == 1 ? 0 : (at + lane) % boxes_of_page << shift;
    exist = __ballot_sync(~0u, page >= 0);
    scales = static_cast<uint8_t const*>(keys.cache) + max(page, 0) * keys.page_stride +
             int64_t(keys.page_size) * Config::kDim + row * int(sizeof(float));
  }
  __device__ __forceinline__ int entry_of(int box) const {
    if (box >= end) return -1;
    int const at = boxes_of_page == 1 ? box : box / boxes_of_page;
    return table[at * keys.table_stride_page];
  }
};

// While the kernel before still runs: into L2 what tells a CTA what to do, a line by each lane of so many warps of each
// CTA. (That kernel may still write it; nothing is read here.)
constexpr int kLine = 128 / sizeof(int32_t);
__device__ __forceinline__ void prefetch_line(int32_t const* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p) : "memory");
}
template <int kWarps>
__device__ __forceinline__ int64_t my_line(int warp, int lane) {
  return kLine * ((int64_t(lane) * kWarps + warp) * gridDim.x + blockIdx.x);
}

// Lengths and block table.
template <int kWarps>
__device__ __forceinline__ void prefetch_tables(IndexerQueries const& q, PagedIndexerKeys const& keys, int warp,
                                                int lane) {
  if (warp == 0 && lane == 0) prefetch_line(keys.context_lens);
  int64_t const at = my_line<kWarps>(warp, lane);
  if (keys.table_stride_page == 1 && at < (q.batch - 1) * keys.table_stride_batch + keys.table_width)
    prefetch_line(keys.block_table + at);
}

// Ranges.
template <int kWarps>
__device__ __forceinline__ void prefetch_tables(IndexerQueries const& q, IndexerKeys const& keys, int warp, int lane) {
  int64_t const at = my_line<kWarps>(warp, lane);
  if (at >= q.tokens) return;
  prefetch_line(keys.start + at * keys.start_stride);
  prefetch_line(keys.end + at * keys.end_stride);
}

// Of one of kTurns warps that load tiles by turns.
template <class Config, class Ranges, int kTurns = 1>
using LoaderOf =
    std::conditional_t<std::is_same_v<Ranges, PagedRanges>, PagedLoader<Config, kTurns>, RaggedLoader<Config>>;

}  // namespace dsa::indexer
