#include "sparse_mla_prefill/sm90/few_heads/launch.cuh"

namespace dsa::sm90::prefill_few_heads {
template cudaError_t launch<512, 8>(SparseMlaPrefillParams const&, cudaStream_t);
template cudaError_t launch<512, 16>(SparseMlaPrefillParams const&, cudaStream_t);
}  // namespace dsa::sm90::prefill_few_heads
