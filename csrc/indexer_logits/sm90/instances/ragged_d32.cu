#include "indexer_logits/sm90/launch.cuh"

namespace dsa::sm90::indexer_logits {
template cudaError_t launch_ragged<8, 32, 128>(IndexerQueries const&, IndexerKeys const&, cudaStream_t);
template cudaError_t launch_ragged<16, 32, 128>(IndexerQueries const&, IndexerKeys const&, cudaStream_t);
template cudaError_t launch_ragged<32, 32, 128>(IndexerQueries const&, IndexerKeys const&, cudaStream_t);
template cudaError_t launch_ragged<64, 32, 128>(IndexerQueries const&, IndexerKeys const&, cudaStream_t);
}  // namespace dsa::sm90::indexer_logits
