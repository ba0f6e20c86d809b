#include "indexer_logits/sm100/launch.cuh"

namespace dsa::sm100::indexer_logits {
template cudaError_t launch_ragged<8, 32>(IndexerQueries const&, IndexerKeys const&, cudaStream_t);
template cudaError_t launch_ragged<16, 32>(IndexerQueries const&, IndexerKeys const&, cudaStream_t);
template cudaError_t launch_ragged<32, 32>(IndexerQueries const&, IndexerKeys const&, cudaStream_t);
template cudaError_t launch_ragged<64, 32>(IndexerQueries const&, IndexerKeys const&, cudaStream_t);
}  // namespace dsa::sm100::indexer_logits
