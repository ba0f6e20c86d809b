// The tensor maps of the attention kernels: Q and the output.
#pragma once

#include "attention/sm90/tiles.h"
#include "common/tensor_map.h"

namespace dsa::sm90 {

// Q in boxes of tile_heads heads, the output in boxes of out_heads, both of 64 columns. Params has sizes and strides of
// q and out, by the names that the ops give them.
template <class Params>
cudaError_t encode_maps(TensorMaps& maps, Params const& p, int tile_heads, int out_heads) {
  // The stride of a dimension of size 1 is never used, but must be legal.
  auto const bytes = [](int64_t stride, int size) { return size > 1 ? uint64_t(stride) * 2 : uint64_t(16); };
  auto const heads = uint64_t(p.h_q), tokens = uint64_t(p.s_q), batch = uint64_t(p.batch);
  if (cudaError_t e = encode_bf16_tensor_map<4>(
          maps.q, p.q, {uint64_t(p.d_qk), heads, tokens, batch},
          {bytes(p.q_stride_head, p.h_q), bytes(p.q_stride_token, p.s_q), bytes(p.q_stride_batch, p.batch)},
          {kTileCols, uint32_t(tile_heads), 1, 1}))
    return e;
  return encode_bf16_tensor_map<4>(
      maps.out, p.out, {kDV, heads, tokens, batch},
      {bytes(p.out_stride_head, p.h_q), bytes(p.out_stride_token, p.s_q), bytes(p.out_stride_batch, p.batch)},
      {kTileCols, uint32_t(out_heads), 1, 1});
}

}  // namespace dsa::sm90
