// The launchers, each instantiated in a unit of instances/.
#pragma once

#include <cuda_runtime_api.h>

#include "indexer_logits/op.h"

namespace dsa::sm100::indexer_logits {

template <int kHeads, int kDim>
cudaError_t launch_ragged(IndexerQueries const&, IndexerKeys const&, cudaStream_t);
template <int kHeads, int kDim>
cudaError_t launch_paged(IndexerQueries const&, PagedIndexerKeys const&, cudaStream_t);

}  // namespace dsa::sm100::indexer_logits
