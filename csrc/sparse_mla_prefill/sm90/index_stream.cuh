// The producers' walk over the key blocks of a CTA's tiles.
#pragma once

#include "sparse_mla_prefill/sm90/work.h"

namespace dsa::sm90 {

// The keys of one tile: where they are, and which rows idx names.
struct TileKeys {
  __nv_bfloat16 const* kv;
  int32_t const* idx;
  int length;

  TileKeys() = default;
  __device__ __forceinline__ TileKeys(KernelParams const& p, Tile tile)
      : kv(static_cast<__nv_bfloat16 const*>(p.kv) + tile.batch * p.kv_stride_batch),
        idx(p.idx + tile.batch * p.idx_stride_batch + tile.token * p.idx_stride_token),
        length(p.length(tile)) {}
};

__device__ __forceinline__ int load_index(int32_t const* idx, int length, int place) {
  return place < length ? __ldg(idx + place) : -1;
}

// Calls gather(kv, first, second) for all pairs of key blocks of all the CTA's tiles; first and second are the indices
// at `place` in the two blocks. They are loaded a pair ahead, across tiles: index lists come from memory, and a
// producer that waited for them would leave the key buffers empty.
template <class Gather>
__device__ __forceinline__ void for_each_pair(KernelParams const& params, int place, Gather const& gather) {
  TileKeys keys(params, params.tile(blockIdx.x));
  int next_first = load_index(keys.idx, keys.length, place);
  int next_second = load_index(keys.idx, keys.length, kBlockK + place);
  for (int64_t i = blockIdx.x; i < params.tiles;) {
    i += gridDim.x;
    TileKeys const following(params, params.tile(i < params.tiles ? i : blockIdx.x));
    int const pairs = params.pairs(keys.length);
#pragma unroll 1
    for (int pair = 1; pair <= pairs; ++pair) {
      int const first = next_first, second = next_second;
      bool const last = pair == pairs;
      int32_t const* const idx = last ? following.idx : keys.idx;
      int const length = last ? following.length : keys.length;
      int const base = last ? 0 : pair * 2 * kBlockK;
      next_first = load_index(idx, length, base + place);
      next_second = load_index(idx, length, base + kBlockK + place);
      gather(keys.kv, first, second);
    }
    keys = following;
  }
}

}  // namespace dsa::sm90
