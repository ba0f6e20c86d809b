// Host side: tensor maps, the rings, and the launch of as many CTAs as there are multiprocessors.
#pragma once

#include "common/launch.h"
#include "common/tensor_map.h"
#include "kernel.cuh"

namespace dsa::sm90::indexer_logits {

// The stride of a dimension of size 1 is never used, but must be legal.
inline uint64_t legal_stride(int64_t stride, int size, int dim) { return size > 1 ? uint64_t(stride) : uint64_t(dim); }

template <class Config>
cudaError_t encode_q(CUtensorMap& map, IndexerQueries const& q) {
  return encode_byte_tensor_map<4>(
      map, Rows<Config::kDim>::kSwizzle, q.q,
      {uint64_t(q.dim), uint64_t(q.heads), uint64_t(q.tokens), uint64_t(q.batch)},
      {legal_stride(q.q_stride_head, q.heads, q.dim), legal_stride(q.q_stride_token, q.tokens, q.dim),
       legal_stride(q.q_stride_batch, q.batch, q.dim)},
      {uint32_t(q.dim), uint32_t(q.heads), uint32_t(Config::kTokens), 1});
}

template <class Config, class Params>
cudaError_t launch(Params const& params, TensorMaps const& maps, cudaStream_t stream) {
  constexpr int kSharedBytes = sizeof(typename Config::SharedStorage);
  int device = 0, sms = 0;
  if (cudaError_t e = cudaGetDevice(&device)) return e;
  if (cudaError_t e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device)) return e;
  auto* const kernel = indexer_logits<Config, Params>;
  if (cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes)) return e;
  return launch_early(kernel, {sms, kThreads}, kSharedBytes, stream, params, maps);
}

template <int kHeads, int kDim, int kColumns>
cudaError_t launch_ragged(IndexerQueries const& q, IndexerKeys const& k, cudaStream_t stream) {
  using Config = Config<kHeads, kDim, kColumns>;
  Rings const rings = Config::rings(kConsumers, turns_of(split_queries<RaggedRanges>));
  RaggedRanges const ranges = {k.start, k.end, k.start_stride, k.end_stride, q.columns};
  RaggedParams const params = {q, k, Blocks(ranges, 1, q.tokens, rings.slabs * Config::kTokens), rings};
  TensorMaps maps;
  if (cudaError_t e = encode_q<Config>(maps.q, q)) return e;
  if (cudaError_t e = encode_byte_tensor_map<2>(
          maps.keys, Rows<kDim>::kSwizzle, k.k, {uint64_t(q.dim), uint64_t(q.columns)},
          {legal_stride(k.k_stride, q.columns, q.dim)}, {uint32_t(q.dim), uint32_t(kTileKeys)}))
    return e;
  return launch<Config>(params, maps, stream);
}

template <int kHeads, int kDim, int kColumns>
cudaError_t launch_paged(IndexerQueries const& q, PagedIndexerKeys const& k, cudaStream_t stream) {
  using Config = Config<kHeads, kDim, kColumns>;
  // As many queries as there is room for share the keys that are read.
  int const slabs = (q.tokens - 1) / Config::kTokens + 1, blocks = (slabs - 1) / Config::kSlabs + 1;
  int const slabs_of_block = (slabs - 1) / blocks + 1;
  Rings const rings = Config::rings(slabs_of_block, turns_of(split_queries<PagedRanges>));
  int64_t const room = int64_t(k.table_width) * k.page_size;
  PagedRanges const ranges = {k.context_lens,
                              k.lens_stride_batch,
                              k.lens_stride_token,
                              k.lens_per_token,
                              q.tokens,
                              int(room < q.columns ? room : q.columns)};
  PagedParams const params = {q, k, Blocks(ranges, q.batch, q.tokens, rings.slabs * Config::kTokens), rings};
  TensorMaps maps;
  if (cudaError_t e = encode_q<Config>(maps.q, q)) return e;
  auto const box = uint32_t(keys_of_box(k.page_size));
  if (cudaError_t e = encode_byte_tensor_map<3>(
          maps.keys, Rows<kDim>::kSwizzle, k.cache, {uint64_t(q.dim), uint64_t(k.page_size), uint64_t(k.pages)},
          {uint64_t(q.dim), k.pages > 1 ? uint64_t(k.page_stride) : uint64_t(q.dim)}, {uint32_t(q.dim), box, 1}))
    return e;
  return launch<Config>(params, maps, stream);
}

}  // namespace dsa::sm90::indexer_logits
