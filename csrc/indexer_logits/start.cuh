// How a CTA finds where its part of the line (schedule.cuh) begins.
//
//   few requests, a block each   one warp reads all lengths at once
//   a plan for this call         one thread reads two cuts
//   else                         each thread adds up a share of the blocks; in whose share the part begins, or ends,
//                                that thread finds the place
//
// What all CTAs read at once comes late, so each reads as little as it can. And so does code: what is executed once
// takes some 25 cycles an instruction (H200), so loops are not unrolled here.
#pragma once

#include "indexer_logits/schedule.cuh"

namespace dsa::indexer {

struct Piece {
  uint32_t first, length;
};

// By a number that is known long before what it divides.
struct Divisor {
  uint32_t by, reciprocal;
  __device__ __forceinline__ explicit Divisor(uint32_t by) : by(by), reciprocal(UINT_MAX / by) {}

  // Of a line that is `all` long.
  __device__ __forceinline__ Piece piece(uint32_t all, uint32_t part) const {
    uint32_t each = __umulhi(all, reciprocal), rest = all - each * by;
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // each is at most so much too small
      bool const more = rest >= by;
      each += more;
      rest -= more ? by : 0;
    }
    return {part * each + min(part, rest), each + (part < rest)};
  }
};

// Where a piece begins, whose first unit is `at` of a block, its gap counted. A cut in a gap is one before the first
// tile; what is left of the gap is a part of the piece's length.
__device__ __forceinline__ Part part_from(int block, int64_t at, int64_t length, int blocks) {
  int64_t const tile = at - kGap;
  return {{block, tile > 0 ? int(tile) : 0}, {blocks, 0}, tile < 0 ? length + tile : length};
}
__device__ __forceinline__ Start no_start(int blocks) { return {{{blocks, 0}, {blocks, 0}, 0}, {0, 0, 0}}; }

__device__ __forceinline__ uint32_t scan(uint32_t sum, int lane) {
  for (int d = 1; d < 32; d *= 2) {
    uint32_t const other = __shfl_up_sync(~0u, sum, d);
    if (lane >= d) sum += other;
  }
  return sum;
}

// Of a few requests that are a block each, by one warp, in one reading; of at most 32 * kEach.
constexpr int kFew = 128;
template <int kEach, class Blocks>
__device__ __forceinline__ Start start_of_few(Blocks const& blocks, uint32_t part, Divisor const& parts) {
  static_assert(int64_t(32 * kEach) * (INT_MAX / kTileKeys + 1 + kGap) <= UINT_MAX);
  int const lane = threadIdx.x % 32, count = blocks.count();
  int end[kEach];
  uint32_t length[kEach], sum[kEach], all = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    int const block = 32 * i + lane;
    end[i] = 32 * i < count ? blocks.ranges.last_end(min(block, count - 1)) : 0;
    if (block >= count) end[i] = 0;
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    length[i] = Tiles{0, (end[i] + kTileKeys - 1) / kTileKeys, end[i]}.length();
    sum[i] = 32 * i < count ? scan(length[i], lane) : 0;
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    sum[i] += all;
    all = __shfl_sync(~0u, sum[i], 31);
  }
  auto const [first, of_part] = parts.piece(all, part);
  if (first >= all) return no_start(count);
  // The first block that ends beyond.
  int block = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) block += __popc(__ballot_sync(~0u, sum[i] <= first));
  int its_end = 0;
  uint32_t before = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    int const of_lane = __shfl_sync(~0u, end[i], block);
    uint32_t const to_there = __shfl_sync(~0u, sum[i] - length[i], block);
    its_end = block / 32 == i ? of_lane : its_end;
    before = block / 32 == i ? to_there : before;
  }
  return {part_from(block, first - before, of_part, count), {0, (its_end - 1) / kTileKeys + 1, its_end}};
}
template <class Blocks>
__device__ __forceinline__ Start start_of_few(Blocks const& blocks, Divisor const& parts) {
  int const count = blocks.count();
  if (count <= 32) return start_of_few<1>(blocks, blockIdx.x, parts);
  if (count <= 64) return start_of_few<2>(blocks, blockIdx.x, parts);
  return start_of_few<kFew / 32>(blocks, blockIdx.x, parts);
}

// Where `at` of the line is, that far behind a block's beginning. A cut in a gap is one before the first tile.
__device__ __forceinline__ Cut cut_in(int block, uint32_t at) { return {block, at > kGap ? int(at - kGap) : 0}; }

// The cuts before and behind a part, by all warps of a CTA; __syncthreads must follow. Blocks are as long as their
// first and last queries tell: a guess that is wrong makes parts of different lengths. The line is shorter than 2^32.
template <int kWarps, class Blocks>
__device__ __forceinline__ void find_cuts(Blocks const& blocks, uint32_t part, Divisor const& parts,
                                          uint32_t (&sums)[kWarps], Part& to) {
  int const warp = threadIdx.x / 32, lane = threadIdx.x % 32, count = blocks.count();
  int const each = (count - 1) / (32 * kWarps) + 1;
  int const first_block = min(int(threadIdx.x) * each, count), end_block = min(first_block + each, count);
  uint32_t mine = 0, of_first = 0;
#pragma unroll 1
  for (int b = first_block; b < end_block; ++b) {
    uint32_t const length = blocks.about(b).length();
    if (b == first_block) of_first = length;
    mine += length;
  }
  uint32_t const sum = scan(mine, lane);
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  uint32_t const of_lane = lane < kWarps ? sums[lane] : 0, all = __reduce_add_sync(~0u, of_lane);
  uint32_t const before = __reduce_add_sync(~0u, lane < warp ? of_lane : 0) + sum - mine;
  auto const [first, length] = parts.piece(all, part);
  // All blocks are some part's, however long they are.
  if (threadIdx.x == 0) to = {{part == 0 ? 0 : count, 0}, {count, 0}, LLONG_MAX};
  __syncthreads();
#pragma unroll 1
  for (int side = 0; side < 2; ++side) {
    uint32_t at = first + (side == 0 ? 0 : length) - before;
    if (at >= mine || (side == 0 && part == 0)) continue;
    int b = first_block;
    for (uint32_t length = of_first; at >= length; length = blocks.about(b).length()) {
      at -= length;
      if (++b == end_block - 1) break;  // where else
    }
    (side == 0 ? to.begin : to.end) = cut_in(b, at);
  }
}

// A plan's cuts, of `count` blocks.
__device__ __forceinline__ bool is_for(int32_t const* plan, int count, int parts) {
  return plan != nullptr && plan[0] == count && plan[1] == parts;
}
__device__ __forceinline__ Cut planned_cut(int32_t const* plan, int part, int count) {
  int32_t const* const cut = plan + kIndexerPlanHeader + 2 * int64_t(part);
  return {min(max(cut[0], 0), count), max(cut[1], 0)};
}

// The same for all threads. A plan is read only where it saves reading: of a few requests, one reading by one warp
// tells as much.
template <class Params>
__device__ __forceinline__ bool are_few(Params const& params) {
  if constexpr (std::is_same_v<typename Params::Ranges, PagedRanges>)
    return params.blocks.per_batch == 1 && params.blocks.count() <= kFew;
  else
    return false;
}

// If they are not few, by all warps of a CTA; __syncthreads must follow.
template <int kWarps, class Params>
__device__ __forceinline__ void find_start(Params const& params, Divisor const& parts, uint32_t (&sums)[kWarps],
                                           Start& start) {
  int const count = params.blocks.count(), part = blockIdx.x;
  if (threadIdx.x == 0) start.tiles = {0, 0, 0};
  if constexpr (requires { params.keys.plan; }) {
    int32_t const* const plan = params.keys.plan;
    if (count > 32 * kWarps && is_for(plan, count, parts.by)) {
      if (threadIdx.x == 0)
        start.part = {planned_cut(plan, part, count), planned_cut(plan, part + 1, count), LLONG_MAX};
      return;
    }
  }
  find_cuts(params.blocks, part, parts, sums, start.part);
}

}  // namespace dsa::indexer
