// How sparse prefill is cut into work on Blackwell.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "attention/sm100/tiles.h"
#include "sparse_mla_prefill/op.h"

namespace dsa::sm100 {

// One query and some of its heads, from `head` on.
struct Tile {
  int batch, token, head;
};

struct TensorMaps {
  CUtensorMap q, kv;
};

struct KernelParams : SparseMlaPrefillParams {
  int tile_heads, head_blocks;
  uint32_t tiles;  // their Q alone would be 4 TB if there were more than 32 bits can count
  int kv_rows;     // of the matrix that the tensor map of kv describes: all sequences
  int batch_rows;  // from one sequence to the next

  __device__ __forceinline__ Tile tile(uint32_t i) const {
    uint32_t const query = i / head_blocks;
    return {int(query / s_q), int(query % s_q), int(i % head_blocks) * tile_heads};
  }
  // Keys that the query looks at, and blocks that hold them: one, masked, for a query without keys.
  __device__ __forceinline__ int length(Tile t) const {
    if (topk_length == nullptr) return topk;
    return min(max(topk_length[t.batch * topk_length_stride_batch + t.token * topk_length_stride_token], 0), topk);
  }
  __device__ __forceinline__ static int blocks(int length) {
    return max(1, int((uint32_t(length) + kBlockK - 1) / kBlockK));
  }
};

// The keys of one tile: which rows idx names.
struct TileKeys {
  int32_t const* idx;
  int length, s_kv;

  __device__ __forceinline__ TileKeys(KernelParams const& p, Tile t)
      : idx(p.idx + t.batch * p.idx_stride_batch + t.token * p.idx_stride_token), length(p.length(t)), s_kv(p.s_kv) {}

  __device__ __forceinline__ int blocks() const { return KernelParams::blocks(length); }
  // The index of the key at `place`, or -1 if it does not count.
  __device__ __forceinline__ int row(uint32_t place) const {
    int const index = place < uint32_t(length) ? __ldg(idx + place) : -1;
    return uint32_t(index) < uint32_t(s_kv) ? index : -1;
  }
};

}  // namespace dsa::sm100
