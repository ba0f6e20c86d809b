// How a tile of keys comes into shared memory: from a row of keys, or from the pages of a cache. By one warp.
//
//   open(block, unit)     before the tiles of a unit
//   load(stage, key)      the tile that begins with this key: each lane's arrival at full[stage] when its copies land,
//                         and the first lane's with the bytes that TMA brings
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

  __device__ __forceinline__ void open(int, Unit const&) {}

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

// A tile is kTileKeys / box boxes of keys that lie in one page each. The block table is read for 32 boxes at a time,
// one a lane, while those before are loaded. A box without a page has page -1, where TMA finds zeros and reads nothing.
template <class Config>
struct PagedLoader {
  using Shared = typename Config::SharedStorage;

  PagedIndexerKeys const& keys;
  Blocks<PagedRanges> const& blocks;
  CUtensorMap const& map;
  Shared& smem;
  int const lane;
  int const shift;  // a box is 1 << shift keys
  int const boxes, boxes_of_page;
  uint64_t const hint;  // keys that no other block reads leave L2 first: 3 % of a long call
  int32_t const* table;
  int end;  // of the boxes that some query sees; entries of the table past it are not read
  int at;   // box that lane 0 has the page of
  int page;
  int next_entry;  // as the table has it: what is not looked at need not have come

  template <class Params>
  __device__ __forceinline__ PagedLoader(Params const& params, CUtensorMap const& map, Shared& smem, int lane)
      : keys(params.keys),
        blocks(params.blocks),
        map(map),
        smem(smem),
        lane(lane),
        shift(log2_of(keys_of_box(keys.page_size))),
        boxes(kTileKeys >> shift),
        boxes_of_page(keys.page_size >> shift),
        hint(uint64_t(blocks.per_batch > 1 ? cute::TMA::CacheHintSm90::EVICT_NORMAL
                                           : cute::TMA::CacheHintSm90::EVICT_FIRST)) {}

  __device__ __forceinline__ void open(int block, Unit const& unit) {
    table = keys.block_table + blocks.batch_of(block) * keys.table_stride_batch;
    at = unit.first_key >> shift;
    end = ((unit.end_key - 1) >> shift) + 1;
    int const entry = entry_of(at + lane);
    next_entry = entry_of(at + 32 + lane);
    page = page_of(entry);
  }

  __device__ __forceinline__ void load(int stage, int key) {
    int const first = key >> shift;
    if (first == at + 32) {
      at = first;
      page = page_of(next_entry);
      next_entry = entry_of(at + 32 + lane);
    }
    auto const page_of_key = [&](int i) { return __shfl_sync(~0u, page, first - at + (i >> shift)); };
    uint32_t const valid = __ballot_sync(~0u, page_of_key(lane * kGroupKeys % kTileKeys) >= 0);
    int const my_box = lane & (boxes - 1), my_box_page = page_of_key(my_box << shift);
    int const my_scale = 4 * lane, my_scale_page = page_of_key(my_scale);
    Barrier& full = smem.full[stage];
    if (lane == 0) {
      smem.valid[stage] = valid;
      full.arrive_and_expect_tx(Config::kTileBytes);
    }
    __syncwarp();  // so that the loop is not unrolled; boxes may land before they are announced
    if (lane < boxes)
      cute::SM90_TMA_LOAD_3D::copy(&map, reinterpret_cast<uint64_t*>(&full), hint,
                                   smem.keys(stage) + (my_box << shift) * Config::kDim, 0,
                                   box_in_page(first + my_box) << shift, my_box_page);
    int const place = (box_in_page(first + (my_scale >> shift)) << shift) + (my_scale & ((1 << shift) - 1));
    int64_t const offset = max(my_scale_page, 0) * keys.page_stride + int64_t(keys.page_size) * Config::kDim +
                           int64_t(place) * int64_t(sizeof(float));
    copy_async<16>(&smem.scale[stage][my_scale], static_cast<uint8_t const*>(keys.cache) + offset, my_scale_page >= 0);
    arrive_after_copies(full);
  }

 private:
  __device__ __forceinline__ int box_in_page(int box_number) const {
    return boxes_of_page == 1 ? 0 : box_number % boxes_of_page;
  }
  __device__ __forceinline__ int entry_of(int box_number) const {
    if (box_number >= end) return -1;
    int const at = boxes_of_page == 1 ? box_number : box_number / boxes_of_page;
    return table[at * keys.table_stride_page];
  }
  __device__ __forceinline__ int page_of(int entry) const { return entry >= 0 && entry < keys.pages ? entry : -1; }
};

// While the kernel before still runs: lengths and block table into L2, a line by each lane of so many warps of each
// CTA. (That kernel may still write them; nothing is read here.)
template <int kWarps>
__device__ __forceinline__ void prefetch_tables(PagedIndexerKeys const& keys, int batch, int warp, int lane) {
  constexpr int kLine = 128 / sizeof(int32_t);
  auto const prefetch = [](int32_t const* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p) : "memory"); };
  if (warp == 0 && lane == 0) prefetch(keys.context_lens);
  int64_t const at = kLine * ((int64_t(lane) * kWarps + warp) * gridDim.x + blockIdx.x);
  if (keys.table_stride_page == 1 && at < (batch - 1) * keys.table_stride_batch + keys.table_width)
    prefetch(keys.block_table + at);
}

template <class Config, class Ranges>
using LoaderOf = std::conditional_t<std::is_same_v<Ranges, PagedRanges>, PagedLoader<Config>, RaggedLoader<Config>>;

}  // namespace dsa::indexer
