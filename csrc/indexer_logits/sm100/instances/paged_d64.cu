#include "indexer_logits/sm100/launch.cuh"

namespace dsa::sm100::indexer_logits {
template cudaError_t launch_paged<8, 64>(IndexerQueries const&, PagedIndexerKeys const&, cudaStream_t);
template cudaError_t launch_paged<16, 64>(IndexerQueries const&, PagedIndexerKeys const&, cudaStream_t);
template cudaError_t launch_paged<32, 64>(IndexerQueries const&, PagedIndexerKeys const&, cudaStream_t);
template cudaError_t launch_paged<64, 64>(IndexerQueries const&, PagedIndexerKeys const&, cudaStream_t);
}  // namespace dsa::sm100::indexer_logits
