// The key blocks that a producer fills, in the order in which it does.
#pragma once

#include "work.cuh"

namespace dsa::sm90 {

// Blocks that follow each other among a query's keys, in one cache.
struct KeyRun {
  int32_t const* idx;  // of the next block's first key
  int count;           // keys from there on that count; at most 0: all masked
  int blocks = 0;      // that are left
  int selection;       // of the caches

  __device__ __forceinline__ void pass() {
    idx += kBlockK;
    count -= kBlockK;
    --blocks;
  }
};

// All blocks of one worker's tiles, a run at a time: each in one tile and one cache.
class KeyWalk {
 public:
  __device__ __forceinline__ explicit KeyWalk(DecodeRange const& range) : left_(range) {}

  // The next one; without any blocks when there is none.
  __device__ __forceinline__ KeyRun next_run(DecodeParams const& params) {
    // (Without a look at lengths, for which the first loads of indices would wait.)
    if (block_ == kTileDone && ends_with_query() && !params.batch_invariant) block_ = kFinished;
    if (block_ == kFinished) return {};
    DecodeWork work(params, 0, 0, left_);  // (which part does not matter here)
    if (block_ == kTileDone) {
      work.advance();
      block_ = kFirst;
    }
    if (work.done()) {
      block_ = kFinished;
      return {};
    }
    DecodeTile const tile = work.tile();
    left_ = work.left();
    if (block_ == kFirst) block_ = tile.first_block;
    int const first_blocks = DecodeShape::blocks_of(tile.length[0]);
    // (Each of the two by name: indexing would put the parameters into local memory.)
    bool const second = block_ >= first_blocks;
    int const begin = (block_ - (second ? first_blocks : 0)) * kBlockK;
    int64_t const query = second ? offset(tile, params.keys[1]) : offset(tile, params.keys[0]);
    int const end = second ? tile.end_block : min(tile.end_block, first_blocks);
    KeyRun const run = {(second ? params.keys[1].idx : params.keys[0].idx) + query + begin,
                        (second ? tile.length[1] : tile.length[0]) - begin, end - block_, int(second)};
    block_ = end == tile.end_block ? kTileDone : end;
    return run;
  }

 private:
  static constexpr int kFinished = -3, kFirst = -1, kTileDone = -2;

  // Whether what is left of the part is of one query.
  __device__ __forceinline__ bool ends_with_query() const {
    return left_.begin.query + (left_.end.unit == 0) >= left_.end.query;
  }

  __device__ __forceinline__ static int64_t offset(DecodeTile const& tile, KvSelection const& keys) {
    return tile.batch * keys.idx_stride_batch + tile.token * keys.idx_stride_token;
  }

  int block_ = kFirst;  // where the next run begins, among its query's blocks, or the tile's end
  DecodeRange left_;    // of the part, from the run's tile on
};

}  // namespace dsa::sm90
