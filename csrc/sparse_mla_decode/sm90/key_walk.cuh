// The key blocks that a producer fills, in the order in which it does.
#pragma once

#include "work.cuh"

namespace dsa::sm90 {

// A block's place among a query's keys.
struct KeyBlock {
  int32_t const* idx;  // of the block's first key
  int count;           // keys that count; at most 0: all masked
  int selection;       // of the caches; < 0: there is no block
};

// All blocks of one worker's tiles.
class KeyWalk {
 public:
  __device__ __forceinline__ explicit KeyWalk(DecodeParams const& params, DecodeWork const& work)
      : params_(params), work_(work) {
    open();
  }

  __device__ __forceinline__ bool done() const { return work_.done(); }

  __device__ __forceinline__ KeyBlock next() {
    int const first_blocks = DecodeShape::blocks_of(tile_.length[0]);
    // (Each of the two by name: indexing would put the parameters into local memory.)
    bool const second = block_ >= first_blocks;
    int const begin = (block_ - (second ? first_blocks : 0)) * kBlockK;
    int64_t const query = second ? offset(params_.keys[1]) : offset(params_.keys[0]);
    KeyBlock const result = {(second ? params_.keys[1].idx : params_.keys[0].idx) + query + begin,
                             (second ? tile_.length[1] : tile_.length[0]) - begin, int(second)};
    if (++block_ == tile_.end_block) {
      work_.advance();
      open();
    }
    return result;
  }

 private:
  __device__ __forceinline__ int64_t offset(KvSelection const& keys) const {
    return tile_.batch * keys.idx_stride_batch + tile_.token * keys.idx_stride_token;
  }

  __device__ __forceinline__ void open() {
    if (work_.done()) return;
    tile_ = work_.tile();
    block_ = tile_.first_block;
  }

  DecodeParams const& params_;
  DecodeWork work_;
  DecodeTile tile_;
  int block_ = 0;
};

}  // namespace dsa::sm90
