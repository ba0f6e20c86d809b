#include "indexer_logits/sm90/launch.cuh"

namespace dsa::sm90::indexer_logits {
template cudaError_t launch_ragged<8, 64, 128>(IndexerQueries const&, IndexerKeys const&, cudaStream_t);
template cudaError_t launch_ragged<16, 64, 128>(IndexerQueries const&, IndexerKeys const&, cudaStream_t);
template cudaError_t launch_ragged<32, 64, 128>(IndexerQueries const&, IndexerKeys const&, cudaStream_t);
template cudaError_t launch_ragged<64, 64, 128>(IndexerQueries const&, IndexerKeys const&, cudaStream_t);
}  // namespace dsa::sm90::indexer_logits
