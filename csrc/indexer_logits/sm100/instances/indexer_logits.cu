// The kernels as an implementation of the op.
#include "indexer_logits/sm100/launch.h"

namespace dsa::sm100 {
namespace indexer_logits {

char const* why_unsupported(int heads, int dim, int page_size) {
  if (heads != 8 && heads != 16 && heads != 32 && heads != 64) return "heads other than 8, 16, 32 or 64";
  if (dim != 32 && dim != 64 && dim != 128) return "a head dimension other than 32, 64 or 128";
  return page_size % 8 != 0 ? "a page_size that is not a multiple of 8" : nullptr;
}

// Calls f<kHeads, kDim>().
template <int kDim, class F>
cudaError_t with_heads(int heads, F const& f) {
  switch (heads) {
    case 8: return f.template operator()<8, kDim>();
    case 16: return f.template operator()<16, kDim>();
    case 32: return f.template operator()<32, kDim>();
    case 64: return f.template operator()<64, kDim>();
  }
  return cudaErrorInvalidValue;
}

template <class F>
cudaError_t with_sizes(int heads, int dim, F const& f) {
  switch (dim) {
    case 32: return with_heads<32>(heads, f);
    case 64: return with_heads<64>(heads, f);
    case 128: return with_heads<128>(heads, f);
  }
  return cudaErrorInvalidValue;
}

int run(IndexerQueries const& q, IndexerKeys const& k, void* stream) {
  return with_sizes(q.heads, q.dim, [&]<int kHeads, int kDim>() {
    return launch_ragged<kHeads, kDim>(q, k, static_cast<cudaStream_t>(stream));
  });
}

int run_paged(IndexerQueries const& q, PagedIndexerKeys const& k, void* stream) {
  return with_sizes(q.heads, q.dim, [&]<int kHeads, int kDim>() {
    return launch_paged<kHeads, kDim>(q, k, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace indexer_logits

IndexerLogitsImpl const kIndexerLogits = {"sm100", 10, indexer_logits::why_unsupported, indexer_logits::run,
                                          indexer_logits::run_paged};
}  // namespace dsa::sm100
