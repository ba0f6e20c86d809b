#include "sparse_mla_decode/sm100/launch.cuh"

namespace dsa::sm100::decode {
template cudaError_t launch<KvV4, 1>(SparseMlaDecodeParams const&, cudaStream_t);
}
