#include "sparse_mla_decode/sm90/few_heads.cuh"

namespace dsa::sm90::decode_few_heads {
template cudaError_t launch<KvV4, 8>(SparseMlaDecodeParams const&, cudaStream_t);
template cudaError_t launch<KvV4, 16>(SparseMlaDecodeParams const&, cudaStream_t);
}  // namespace dsa::sm90::decode_few_heads
