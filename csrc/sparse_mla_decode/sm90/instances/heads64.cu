// The 64-head kernel as an implementation of the op.
#include <cuda_runtime_api.h>

#include "sparse_mla_decode/op.h"

namespace dsa::sm90 {
namespace decode_heads64 {
template <class Format>
cudaError_t launch(SparseMlaDecodeParams const&, cudaStream_t);
extern template cudaError_t launch<KvV32>(SparseMlaDecodeParams const&, cudaStream_t);
extern template cudaError_t launch<KvV4>(SparseMlaDecodeParams const&, cudaStream_t);
extern template cudaError_t launch<KvBf16>(SparseMlaDecodeParams const&, cudaStream_t);

char const* why_unsupported(KvFormat, int h_q) { return h_q <= 16 ? "at most 16 heads" : nullptr; }

int run(SparseMlaDecodeParams const& p, KvFormat format, void* stream) {
  auto const s = static_cast<cudaStream_t>(stream);
  switch (format) {
    case KvFormat::kV32: return launch<KvV32>(p, s);
    case KvFormat::kV4: return launch<KvV4>(p, s);
    case KvFormat::kBf16: return launch<KvBf16>(p, s);
  }
  return cudaErrorInvalidValue;
}
}  // namespace decode_heads64

SparseMlaDecodeImpl const kSparseMlaDecodeHeads64 = {"sm90 heads64", 9, decode_heads64::why_unsupported,
                                                     decode_heads64::run};
}  // namespace dsa::sm90
