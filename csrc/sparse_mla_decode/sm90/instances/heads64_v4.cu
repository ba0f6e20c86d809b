#include "sparse_mla_decode/sm90/heads64.cuh"

namespace dsa::sm90::decode_heads64 {
template Team team_for<KvV4>(SparseMlaDecodeParams const&);
template cudaError_t launch_team<KvV4>(SparseMlaDecodeParams const&, Team const&, cudaStream_t);
template cudaError_t launch<KvV4>(SparseMlaDecodeParams const&, cudaStream_t);
}  // namespace dsa::sm90::decode_heads64
