#include "sparse_mla_prefill/sm100/pair/launch.cuh"

namespace dsa::sm100::prefill_pair {
template cudaError_t launch<512>(SparseMlaPrefillParams const&, cudaStream_t);
}
