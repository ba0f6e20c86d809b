// The key blocks that a producer fills, in the order in which it does.
#pragma once

#include "work.cuh"

namespace dsa::sm90 {

// A block's place among a query's keys.
struct KeyBlock {
  int32_t const* idx;  // of the block's first key
  int count;           // keys that count; at most 0: all masked
  int selection;       // of the caches
};

// All blocks of one worker's tiles. Producers have few registers: they keep a run of blocks, all in one tile and one
// cache, and work out the next run from its place.
class KeyWalk {
 public:
  __device__ __forceinline__ explicit KeyWalk(DecodeRange const& range) : left_(range) {}

  // Whether there is another.
  __device__ __forceinline__ bool next(DecodeParams const& params, KeyBlock& block) {
    if (blocks_ == 0) open_run(params);
    if (blocks_ == kFinished) return false;
    block = run_;
    run_.idx += kBlockK;
    run_.count -= kBlockK;
    --blocks_;
    return true;
  }

 private:
  static constexpr int kFinished = -1, kFirst = -1, kTileDone = -2;

  __device__ __forceinline__ void open_run(DecodeParams const& params) {
    if (block_ == kTileDone && ends_with_query() && !params.batch_invariant) {
      blocks_ = kFinished;  // without a look at lengths, for which the first loads of indices would wait
      return;
    }
    DecodeWork work(params, 0, 0, left_);  // (which part does not matter here)
    if (block_ == kTileDone) {
      work.advance();
      block_ = kFirst;
    }
    if (work.done()) {
      blocks_ = kFinished;
      return;
    }
    DecodeTile const tile = work.tile();
    left_ = work.left();
    if (block_ == kFirst) block_ = tile.first_block;
    int const first_blocks = DecodeShape::blocks_of(tile.length[0]);
    // (Each of the two by name: indexing would put the parameters into local memory.)
    bool const second = block_ >= first_blocks;
    int const begin = (block_ - (second ? first_blocks : 0)) * kBlockK;
    int64_t const query = second ? offset(tile, params.keys[1]) : offset(tile, params.keys[0]);
    run_ = {(second ? params.keys[1].idx : params.keys[0].idx) + query + begin,
            (second ? tile.length[1] : tile.length[0]) - begin, int(second)};
    int const end = second ? tile.end_block : min(tile.end_block, first_blocks);
    blocks_ = end - block_;
    block_ = end == tile.end_block ? kTileDone : end;
  }

  // Whether what is left of the part is of one query.
  __device__ __forceinline__ bool ends_with_query() const {
    return left_.begin.query + (left_.end.unit == 0) >= left_.end.query;
  }

  __device__ __forceinline__ static int64_t offset(DecodeTile const& tile, KvSelection const& keys) {
    return tile.batch * keys.idx_stride_batch + tile.token * keys.idx_stride_token;
  }

  KeyBlock run_;        // its next block
  int blocks_ = 0;      // that it has left
  int block_ = kFirst;  // where the next run begins, among its query's blocks, or the tile's end
  DecodeRange left_;    // of the part, from the run's tile on
};

}  // namespace dsa::sm90
