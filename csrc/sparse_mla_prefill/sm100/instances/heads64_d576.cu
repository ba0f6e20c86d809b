#include "sparse_mla_prefill/sm100/heads64/launch.cuh"

namespace dsa::sm100::prefill_heads64 {
template cudaError_t launch<576>(SparseMlaPrefillParams const&, cudaStream_t);
}
