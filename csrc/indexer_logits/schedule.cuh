// Which keys a block of queries sees, and how that work is spread over the device.
//
// Queries come in blocks that share every key that is read; keys in tiles of 128. A block has the tiles that any of its
// queries sees. The tiles of all blocks form one line, each block's behind a gap, which stands for the time that a
// block takes to begin. The line is cut into parts of equal length, one for each CTA; what is behind a cut is that
// CTA's. Every CTA finds its own cut: one warp, if there are a few requests; else each warp adds up a share of the
// blocks, and one then walks to the place.
//
// A plan is the list of all cuts, found beforehand by the same code. Any list that ascends gives right results,
// whatever the lengths have become since: a part begins at its cut and ends at the next one, and a block's last part
// goes to where the block ends now. A plan for other sizes is not looked at.
#pragma once

#include <climits>
#include <cstdint>
#include <type_traits>

#include "indexer_logits/op.h"

namespace dsa::indexer {

constexpr int kTileKeys = 128;
constexpr int kGroupKeys = 8;  // that lie in one page
constexpr int kGap = 1;        // before a block, in tiles: what its Q and weights take to come

struct Range {
  int start, end;  // of keys; start == end: none
};

struct Tiles {
  int begin, end;
  int end_key;  // of those that some query sees
  __device__ __forceinline__ int count() const { return end - begin; }
  __device__ __forceinline__ int length() const { return count() == 0 ? 0 : kGap + count(); }  // on the line
};

// What each query sees, by [start, end).
struct RaggedRanges {
  int32_t const *start, *end;
  int64_t start_stride, end_stride;
  int keys;

  __device__ __forceinline__ Range operator()(int, int token) const {
    int const first = max(start[token * start_stride], 0), last = min(end[token * end_stride], keys);
    return first < last ? Range{first, last} : Range{0, 0};
  }
  __device__ __forceinline__ bool last_sees_all() const { return false; }
};

// What each token sees of its request's context.
struct PagedRanges {
  int32_t const* lens;
  int64_t stride_batch, stride_token;
  bool per_token;
  int tokens;
  int keys;  // most that the output, or the block table, has room for

  __device__ __forceinline__ Range operator()(int batch, int token) const {
    int64_t const at = batch * stride_batch;
    int64_t const len = per_token ? int64_t(lens[at + token * stride_token]) : int64_t(lens[at]) - tokens + token + 1;
    return {0, int(len < 0 ? 0 : len < keys ? len : keys)};
  }
  // Of a request's keys, those that some token sees end here.
  __device__ __forceinline__ int end_of(int batch) const {
    int most = 0;
#pragma unroll 1
    for (int t = per_token ? 0 : tokens - 1; t < tokens; ++t)
      most = max(most, lens[batch * stride_batch + t * stride_token]);
    return min(most, keys);
  }
  // Whether the last of several tokens sees what any of them sees.
  __device__ __forceinline__ bool last_sees_all() const { return !per_token; }
};

// Block b: up to block_tokens queries of one batch.
template <class Ranges>
struct Blocks {
  Ranges ranges;
  int batch, tokens, block_tokens, per_batch;

  __host__ __device__ __forceinline__ Blocks(Ranges const& ranges, int batch, int tokens, int block_tokens)
      : ranges(ranges),
        batch(batch),
        tokens(tokens),
        block_tokens(block_tokens),
        per_batch((tokens - 1) / block_tokens + 1) {}

  __device__ __forceinline__ int count() const { return batch * per_batch; }
  __device__ __forceinline__ int batch_of(int block) const { return per_batch == 1 ? block : block / per_batch; }
  __device__ __forceinline__ int first_token(int block) const {
    return per_batch == 1 ? 0 : block % per_batch * block_tokens;
  }
  __device__ __forceinline__ int tokens_of(int block) const { return min(block_tokens, tokens - first_token(block)); }

  // Of one block, by one thread.
  __device__ __forceinline__ Tiles tiles(int block) const {
    int const b = batch_of(block), first = first_token(block), n = tokens_of(block);
    int start = INT_MAX, end = 0;
#pragma unroll 4  // that many reads at once
    for (int t = ranges.last_sees_all() ? n - 1 : 0; t < n; ++t) add(ranges(b, first + t), start, end);
    return cover(start, end);
  }
  // By a warp.
  __device__ __forceinline__ Tiles tiles_by_warp(int block, int lane) const {
    int const b = batch_of(block), first = first_token(block), n = tokens_of(block);
    int start = INT_MAX, end = 0;
    for (int t = lane; t < n; t += 32) add(ranges(b, first + t), start, end);
    return cover(__reduce_min_sync(~0u, start), __reduce_max_sync(~0u, end));
  }

 private:
  __device__ __forceinline__ static void add(Range r, int& start, int& end) {
    if (r.start == r.end) return;
    start = min(start, r.start);
    end = max(end, r.end);
  }
  __device__ __forceinline__ static Tiles cover(int start, int end) {
    return end == 0 ? Tiles{0, 0, 0} : Tiles{start / kTileKeys, (end - 1) / kTileKeys + 1, end};
  }
};

// A block of queries that comes with tiles [first_key / kTileKeys, + tiles).
struct Unit {
  int64_t out;  // offset of the first query's row of the output, in elements
  int first_key, tiles, tokens;
  int end_key;  // of the keys that some query sees
};

// A place on the line: tile `tile` of a block, counted from its first.
struct Cut {
  int block, tile;
};
__device__ __forceinline__ bool is_before(Cut a, Cut b) {
  return a.block < b.block || (a.block == b.block && a.tile < b.tile);
}

// Of one CTA: from a cut on, so far on the line at most, and not beyond another cut.
struct Part {
  Cut begin, end;
  int64_t length;
};

// The sums that the warps of a CTA have found, and this lane's.
template <int kWarps>
struct LineSums {
  int64_t lengths[kWarps];
};

__device__ __forceinline__ int64_t warp_sum(int64_t x) {
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}

// Blocks that warp w adds up: [w * share, (w + 1) * share).
template <int kWarps>
__device__ __forceinline__ int share(int blocks) {
  return (blocks + kWarps - 1) / kWarps;
}

// Every warp of the CTA; __syncthreads must follow.
template <int kWarps, class Blocks>
__device__ __forceinline__ void add_up(Blocks const& blocks, LineSums<kWarps>& sums) {
  int const warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int const count = blocks.count(), each = share<kWarps>(count);
  int64_t const end = min(int64_t(warp + 1) * each, int64_t(count));
  int64_t sum = 0;
  for (int64_t b = int64_t(warp) * each + lane; b < end; b += 32) sum += blocks.tiles(int(b)).length();
  sum = warp_sum(sum);
  if (lane == 0) sums.lengths[warp] = sum;
}

// A part of a line that is `all` long.
template <class T>
struct Piece {
  T first, length;
};
template <class T>
__device__ __forceinline__ Piece<T> piece(T each, T rest, T part) {
  return {part * each + min(part, rest), each + T(part < rest)};
}

// By a number that is known long before what it divides.
struct Divisor {
  uint32_t by, reciprocal;
  __device__ __forceinline__ explicit Divisor(uint32_t by) : by(by), reciprocal(UINT_MAX / by) {}

  __device__ __forceinline__ Piece<uint32_t> piece(uint32_t all, uint32_t part) const {
    uint32_t each = __umulhi(all, reciprocal), rest = all - each * by;
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // each is at most so much too small
      bool const more = rest >= by;
      each += more;
      rest -= more ? by : 0;
    }
    return indexer::piece(each, rest, part);
  }
};

// Where a piece begins, whose first unit is `at` of a block, its gap counted. A cut in a gap is one before the first
// tile; what is left of the gap is a part of the piece's length.
__device__ __forceinline__ Part part_from(int block, int64_t at, int64_t length, int blocks) {
  int64_t const tile = at - kGap;
  return {{block, tile > 0 ? int(tile) : 0}, {blocks, 0}, tile < 0 ? length + tile : length};
}
__device__ __forceinline__ Part no_part(int blocks) { return {{blocks, 0}, {blocks, 0}, 0}; }

template <class T>
__device__ __forceinline__ T scan(T sum, int lane) {
  for (int d = 1; d < 32; d *= 2) {
    T const other = __shfl_up_sync(~0u, sum, d);
    if (lane >= d) sum += other;
  }
  return sum;
}

// Where part `part` of `parts` lies on the line, by one whole warp.
template <int kWarps, class Blocks>
__device__ __forceinline__ Part find_part(Blocks const& blocks, LineSums<kWarps> const& sums, int part, int parts) {
  int const lane = threadIdx.x % 32, count = blocks.count();
  int64_t all = 0;
  for (int w = 0; w < kWarps; ++w) all += sums.lengths[w];
  auto const [first, length] = piece(all / parts, all % parts, int64_t(part));
  if (first >= all) return no_part(count);

  int64_t before = 0;
  int warp = 0;
  while (before + sums.lengths[warp] <= first) before += sums.lengths[warp++];
  for (int64_t at = int64_t(warp) * share<kWarps>(count); at < count; at += 32) {
    int64_t const block = at + lane;
    int64_t const mine = block < count ? blocks.tiles(int(block)).length() : 0;
    int64_t const sum = scan(mine, lane);
    uint32_t const beyond = __ballot_sync(~0u, before + sum > first);
    if (beyond != 0) {
      int const l = __ffs(beyond) - 1;
      return part_from(int(at) + l, __shfl_sync(~0u, first - before - (sum - mine), l), length, count);
    }
    before += __shfl_sync(~0u, sum, 31);
  }
  return no_part(count);
}

// Where a CTA begins: a cut at which there is a tile, and what is seen of that block. Without tiles there is no work.
struct Start {
  Part part;
  Tiles tiles;
};

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
    end[i] = 32 * i < count ? blocks.ranges.end_of(min(block, count - 1)) : 0;
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
  if (first >= all) return {no_part(count), {0, 0, 0}};
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

// As a plan has it. `count` blocks.
__device__ __forceinline__ bool is_for(int32_t const* plan, int count, int parts) {
  return plan != nullptr && plan[0] == count && plan[1] == parts;
}
__device__ __forceinline__ Cut planned_cut(int32_t const* plan, int part, int count) {
  int32_t const* const cut = plan + kIndexerPlanHeader + 2 * int64_t(part);
  return {min(max(cut[0], 0), count), max(cut[1], 0)};
}
__device__ __forceinline__ Part planned_part(int32_t const* plan, int part, int count) {
  return {planned_cut(plan, part, count), planned_cut(plan, part + 1, count), LLONG_MAX};
}

// How a CTA finds its part; the same for all of its threads. A plan is read only where it saves reading: of a few
// requests, one reading by one warp tells as much.
enum class Finding { kFew, kPlan, kSums };
template <class Params>
__device__ __forceinline__ bool are_few(Params const& params) {
  if constexpr (std::is_same_v<typename Params::Ranges, PagedRanges>)
    return params.blocks.per_batch == 1 && params.blocks.count() <= kFew;
  else
    return false;
}
template <int kWarps, class Params>
__device__ __forceinline__ Finding how_to_find(Params const& params) {
  if (are_few(params)) return Finding::kFew;
  int const count = params.blocks.count();
  if constexpr (requires { params.keys.plan; })
    if (count > 32 * kWarps && is_for(params.keys.plan, count, gridDim.x)) return Finding::kPlan;
  return Finding::kSums;
}
// The part of the line that this CTA has, by one warp, if it is not found by start_of_few; after add_up if that is how.
template <int kWarps, class Params>
__device__ __forceinline__ Part my_part(Finding how, Params const& params, LineSums<kWarps> const& sums) {
  if constexpr (requires { params.keys.plan; })
    if (how == Finding::kPlan) return planned_part(params.keys.plan, blockIdx.x, params.blocks.count());
  return find_part(params.blocks, sums, blockIdx.x, gridDim.x);
}

}  // namespace dsa::indexer
