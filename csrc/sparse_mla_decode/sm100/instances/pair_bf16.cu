#include "sparse_mla_decode/sm100/launch.cuh"

namespace dsa::sm100::decode {
template cudaError_t launch<KvBf16, 2>(SparseMlaDecodeParams const&, cudaStream_t);
}
