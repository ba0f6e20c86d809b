#include "sparse_mla_prefill/sm100/launch.cuh"

namespace dsa::sm100::prefill {
template cudaError_t launch<512>(SparseMlaPrefillParams const&, cudaStream_t);
}
