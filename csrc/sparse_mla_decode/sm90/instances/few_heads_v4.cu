#include "sparse_mla_decode/sm90/few_heads.cuh"

namespace dsa::sm90::decode_few_heads {
template int most_teams<KvV4, 8>(int, int);
template int most_teams<KvV4, 16>(int, int);
template cudaError_t launch<KvV4, 8>(SparseMlaDecodeParams const&, Team const&, cudaStream_t);
template cudaError_t launch<KvV4, 16>(SparseMlaDecodeParams const&, Team const&, cudaStream_t);
}  // namespace dsa::sm90::decode_few_heads
