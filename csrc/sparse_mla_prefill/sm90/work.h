// How sparse prefill is cut into work on Hopper.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

#include "sparse_mla_prefill/op.h"

namespace dsa::sm90 {

constexpr int kBlockK = 64;  // keys a block

// One query and some of its heads, from `head` on.
struct Tile {
  int batch, token, head;
};

// A CTA takes every gridDim.x-th tile. Neighbouring CTAs take the head blocks of one query and so gather the same rows
// at the same time.
struct KernelParams : SparseMlaPrefillParams {
  int tile_heads, head_blocks;
  uint32_t tiles;  // their Q alone would be 4 TB if there were more than 32 bits can count

  __device__ Tile tile(uint32_t i) const {
    uint32_t const query = i / head_blocks;
    return {int(query / s_q), int(query % s_q), int(i % head_blocks) * tile_heads};
  }
  // Keys that the query looks at, and pairs of key blocks that hold them; a query without keys has one masked pair.
  __device__ int length(Tile t) const {
    if (topk_length == nullptr) return topk;
    return min(max(topk_length[t.batch * topk_length_stride_batch + t.token * topk_length_stride_token], 0), topk);
  }
  __device__ static int pairs(int length) { return max(1, (length + 2 * kBlockK - 1) / (2 * kBlockK)); }
};

struct TensorMaps {
  CUtensorMap q, out;
};

}  // namespace dsa::sm90
