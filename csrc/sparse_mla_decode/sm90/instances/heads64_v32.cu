#include "sparse_mla_decode/sm90/heads64.cuh"

namespace dsa::sm90::decode_heads64 {
template cudaError_t launch<KvV32>(SparseMlaDecodeParams const&, cudaStream_t);
}
