#include "sparse_mla_decode/sm90/few_heads.cuh"

namespace dsa::sm90::decode_few_heads {
template int most_teams<KvBf16, 8>(int, int);
template int most_teams<KvBf16, 16>(int, int);
template cudaError_t launch<KvBf16, 8>(SparseMlaDecodeParams const&, Team const&, cudaStream_t);
template cudaError_t launch<KvBf16, 16>(SparseMlaDecodeParams const&, Team const&, cudaStream_t);
}  // namespace dsa::sm90::decode_few_heads
