// Which keys a block of queries sees, and how that work is spread over the device.
//
// Queries come in blocks that share every key that is read; keys in tiles of 128. A block has the tiles that any of its
// queries sees. The tiles of all blocks form one line, each block's behind a gap, which stands for the time that a
// block takes to begin. The line is cut into parts of equal length, one for each CTA; what is behind a cut is that
// CTA's. Every CTA finds its own cut (start.cuh).
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
constexpr int kGap = 2;        // before a block, in tiles: what its Q and weights take to come

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
  static constexpr bool kOneBatch = true, kStarts = true;
  int32_t const *start, *end;
  int64_t start_stride, end_stride;
  int keys;

  __device__ __forceinline__ int32_t const* start_of(int, int token) const { return start + token * start_stride; }
  __device__ __forceinline__ int32_t const* end_of(int, int token) const { return end + token * end_stride; }
  // As the caller gave it.
  __device__ __forceinline__ Range clamp(Range given, int) const {
    int const first = max(given.start, 0), last = min(given.end, keys);
    return first < last ? Range{first, last} : Range{0, 0};
  }
  __device__ __forceinline__ Range operator()(int batch, int token) const {
    return clamp({*start_of(batch, token), *end_of(batch, token)}, token);
  }
  __device__ __forceinline__ bool last_sees_all() const { return false; }
};

// What each token sees of its request's context.
struct PagedRanges {
  static constexpr bool kOneBatch = false, kStarts = false;
  int32_t const* lens;
  int64_t stride_batch, stride_token;
  bool per_token;
  int tokens;
  int keys;  // most that the output, or the block table, has room for

  __device__ __forceinline__ int32_t const* end_of(int batch, int token) const {
    return lens + batch * stride_batch + (per_token ? token * stride_token : 0);
  }
  // The end as the caller gave it.
  __device__ __forceinline__ Range clamp(Range given, int token) const {
    int64_t const len = per_token ? int64_t(given.end) : int64_t(given.end) - tokens + token + 1;
    return {0, int(len < 0 ? 0 : len < keys ? len : keys)};
  }
  __device__ __forceinline__ Range operator()(int batch, int token) const {
    return clamp({0, *end_of(batch, token)}, token);
  }
  // Of a request's keys, those that some token sees end here.
  __device__ __forceinline__ int last_end(int batch) const {
    int most = 0;
#pragma unroll 1
    for (int t = per_token ? 0 : tokens - 1; t < tokens; ++t) most = max(most, *end_of(batch, t));
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
  // (A division takes 25 instructions.)
  __device__ __forceinline__ int batch_of(int block) const {
    return Ranges::kOneBatch ? 0 : per_batch == 1 ? block : block / per_batch;
  }
  __device__ __forceinline__ int first_token(int block) const {
    return (Ranges::kOneBatch ? block : per_batch == 1 ? 0 : block % per_batch) * block_tokens;
  }
  __device__ __forceinline__ int tokens_of(int block) const { return tokens_from(first_token(block)); }

  // Of one block, by one thread.
  __device__ __forceinline__ Tiles tiles(int block) const {
    int const b = batch_of(block), first = first_token(block), n = tokens_from(first);
    int start = INT_MAX, end = 0;
#pragma unroll 4  // that many reads at once
    for (int t = ranges.last_sees_all() ? n - 1 : 0; t < n; ++t) add(ranges(b, first + t), start, end);
    return cover(start, end);
  }
  // By a warp.
  __device__ __forceinline__ Tiles tiles_by_warp(int block, int lane) const {
    int const b = batch_of(block), first = first_token(block), n = tokens_from(first);
    int start = INT_MAX, end = 0;
    for (int t = lane; t < n; t += 32) add(ranges(b, first + t), start, end);
    return cover(__reduce_min_sync(~0u, start), __reduce_max_sync(~0u, end));
  }
  // As its first and last queries tell.
  __device__ __forceinline__ Tiles about(int block) const {
    int const b = batch_of(block), first = first_token(block);
    int start = INT_MAX, end = 0;
    add(ranges(b, first), start, end);
    add(ranges(b, first + tokens_from(first) - 1), start, end);
    return cover(start, end);
  }

 private:
  __device__ __forceinline__ int tokens_from(int first) const { return min(block_tokens, tokens - first); }
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
  int first_key, tiles;
  int token, tokens;  // the first query's number, and how many they are
  int end_key;        // of the keys that some query sees
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

// What a CTA does, and what is seen of the block where it begins, if that is known already.
struct Start {
  Part part;
  Tiles tiles;
};

}  // namespace dsa::indexer
