// One query of 64 heads, or two of 32, in a product of their size.
#include "indexer_logits/sm90/launch.cuh"

namespace dsa::sm90::indexer_logits {
template cudaError_t launch_paged<32, 128, 64>(IndexerQueries const&, PagedIndexerKeys const&, cudaStream_t);
template cudaError_t launch_paged<64, 128, 64>(IndexerQueries const&, PagedIndexerKeys const&, cudaStream_t);
}  // namespace dsa::sm90::indexer_logits
