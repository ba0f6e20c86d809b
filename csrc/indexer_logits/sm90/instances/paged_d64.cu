#include "indexer_logits/sm90/launch.cuh"

namespace dsa::sm90::indexer_logits {
template cudaError_t launch_paged<8, 64, 128>(IndexerQueries const&, PagedIndexerKeys const&, cudaStream_t);
template cudaError_t launch_paged<16, 64, 128>(IndexerQueries const&, PagedIndexerKeys const&, cudaStream_t);
template cudaError_t launch_paged<32, 64, 128>(IndexerQueries const&, PagedIndexerKeys const&, cudaStream_t);
template cudaError_t launch_paged<64, 64, 128>(IndexerQueries const&, PagedIndexerKeys const&, cudaStream_t);
}  // namespace dsa::sm90::indexer_logits
