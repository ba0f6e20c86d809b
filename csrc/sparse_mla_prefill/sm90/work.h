// How sparse prefill is cut into work on Hopper.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "attention/sm90/tiles.h"
#include "sparse_mla_prefill/op.h"

namespace dsa::sm90 {

// One query and some of its heads, from `head` on.
struct Tile {
  int batch, token, head;
};

struct KernelParams : SparseMlaPrefillParams {
  int tile_heads, head_blocks;
  uint32_t tiles;  // their Q alone would be 4 TB if there were more than 32 bits can count

  __device__ Tile tile(uint32_t i) const {
    uint32_t const query = i / head_blocks;
    return {int(query / s_q), int(query % s_q), int(i % head_blocks) * tile_heads};
  }
  // Keys that the query looks at; blocks and pairs of blocks that hold them: one, masked, for a query without keys.
  __device__ int length(Tile t) const {
    if (topk_length == nullptr) return topk;
    return min(max(topk_length[t.batch * topk_length_stride_batch + t.token * topk_length_stride_token], 0), topk);
  }
  __device__ static int blocks(int length) { return max(1, (length + kBlockK - 1) / kBlockK); }
  __device__ static int pairs(int length) { return max(1, (length + 2 * kBlockK - 1) / (2 * kBlockK)); }
};

}  // namespace dsa::sm90
