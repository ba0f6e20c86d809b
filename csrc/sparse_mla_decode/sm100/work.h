// The tiles of a worker, one CTA or a pair of them: which query, heads and keys, and where results go.
#pragma once

#include "attention/sm100/tiles.h"
#include "sparse_mla_decode/plan.h"

namespace dsa::sm100::decode {

static_assert(kBlockK == kDecodeBlock);

struct DecodeParams : SparseMlaDecodeParams {
  DecodeShape shape;
  int parts, tile_heads, head_blocks;
  // Every part for every block of heads: of neighbouring workers, which run at the same time, those of one part read
  // the same rows.
  int items;

  __device__ __forceinline__ static int length(KvSelection const& s, int batch, int token) {
    if (s.length == nullptr) return s.topk;
    return min(max(s.length[batch * s.length_stride_batch + token * s.length_stride_token], 0), s.topk);
  }
};

// `blocks` blocks of a query's keys, at least one, from first_block on; heads from `head` on. Blocks count through the
// first cache's, then the second's; one past the last is masked.
struct DecodeTile {
  int batch, token, head;
  int slot;  // for the result of a part; -1: all of the query
  int first_block, blocks;
  int length, extra_length;

  __device__ __forceinline__ bool is_whole() const { return slot < 0; }
};

// A worker's tiles: all of its items', in order.
class TileWalk {
 public:
  __device__ __forceinline__ TileWalk(DecodeParams const& params, int worker, int workers)
      : params_(params), item_(worker - workers), step_(workers) {}

  // Whether there is another.
  __device__ __forceinline__ bool next(DecodeTile& tile) {
    for (;;) {
      while (at_.query > end_.query || (at_.query == end_.query && at_.unit >= end_.unit))
        if (!next_item()) return false;
      int const batch = at_.query / params_.s_q, token = at_.query % params_.s_q;
      int const length = DecodeParams::length(params_.keys[0], batch, token);
      int const extra_length = DecodeParams::length(params_.keys[1], batch, token);
      DecodeShape const& shape = params_.shape;
      int const units = shape.units(length, extra_length), first = at_.unit;
      DecodeCut const next_query{at_.query + 1, 0};
      int slot = -1, end;
      if (params_.batch_invariant) {
        if (first >= units) {  // a chunk past the last key: combine.cu knows nothing of it
          at_ = next_query;
          continue;
        }
        end = min(first + shape.chunk_units(), units);
        if (units > shape.chunk_units()) slot = at_.query * shape.most_chunks() + first / shape.chunk_units();
        at_ = end < units ? DecodeCut{at_.query, end} : next_query;
      } else {
        bool const last = at_.query == end_.query;
        end = last ? end_.unit : units;
        if (first > 0 || last) slot = 2 * part() + (first > 0 ? 0 : 1);
        at_ = next_query;
      }
      // A unit may have a block more than there are keys for.
      int const first_block = first * shape.unit_blocks();
      int const all = DecodeShape::blocks_of(length) + DecodeShape::blocks_of(extra_length);
      int const blocks = max(1, min(end * shape.unit_blocks(), all) - first_block);
      int const head = item_ % params_.head_blocks * params_.tile_heads;
      tile = {batch, token, head, slot, first_block, blocks, length, extra_length};
      return true;
    }
  }

 private:
  __device__ __forceinline__ int part() const { return item_ / params_.head_blocks; }

  __device__ __forceinline__ bool next_item() {
    if (item_ >= params_.items - step_) return false;
    item_ += step_;
    DecodeRange const range = part_range(params_.plan, params_.shape, part(), params_.parts);
    at_ = range.begin;
    end_ = range.end;
    if (params_.batch_invariant) {
      at_.unit -= at_.unit % params_.shape.chunk_units();
      end_.unit -= end_.unit % params_.shape.chunk_units();
    }
    return true;
  }

  DecodeParams const& params_;
  int item_;
  int const step_;
  DecodeCut at_{0, 0}, end_{0, 0};
};

// A key's number in one of the caches, or -1 if it does not count.
struct Key {
  int slot;
  bool extra;
};

// The keys of one tile.
struct TileKeys {
  DecodeParams const* params;
  int32_t const *idx, *extra_idx;
  int length, extra_length, first_block, blocks;

  TileKeys() = default;
  __device__ __forceinline__ TileKeys(DecodeParams const& p, DecodeTile const& t)
      : params(&p),
        idx(of_query(p.keys[0], t)),
        extra_idx(of_query(p.keys[1], t)),
        length(t.length),
        extra_length(t.extra_length),
        first_block(t.first_block),
        blocks(t.blocks) {}

  // The key at a place of the tile's n-th block.
  __device__ __forceinline__ Key key(int n, int place) const {
    if (n >= blocks) return {-1, false};
    int const first_blocks = DecodeShape::blocks_of(length), block = first_block + n;
    bool const extra = block >= first_blocks;
    uint32_t const at = uint32_t(block - (extra ? first_blocks : 0)) * kBlockK + place;
    int const slot = at < uint32_t(extra ? extra_length : length) ? __ldg((extra ? extra_idx : idx) + at) : -1;
    // (By name: indexing would put the parameters into local memory.)
    int const slots = extra ? params->keys[1].cache.slots : params->keys[0].cache.slots;
    return {uint32_t(slot) < uint32_t(slots) ? slot : -1, extra};
  }

 private:
  __device__ __forceinline__ static int32_t const* of_query(KvSelection const& s, DecodeTile const& t) {
    return s.idx + t.batch * s.idx_stride_batch + t.token * s.idx_stride_token;
  }
};

}  // namespace dsa::sm100::decode
