// The kernel as implementations of the op.
#include <cuda_runtime_api.h>

#include "sparse_mla_decode/op.h"

namespace dsa::sm100 {
namespace decode {
template <class Format, int kCtas>
cudaError_t launch(SparseMlaDecodeParams const&, cudaStream_t);
extern template cudaError_t launch<KvV32, 1>(SparseMlaDecodeParams const&, cudaStream_t);
extern template cudaError_t launch<KvV32, 2>(SparseMlaDecodeParams const&, cudaStream_t);
extern template cudaError_t launch<KvV4, 1>(SparseMlaDecodeParams const&, cudaStream_t);
extern template cudaError_t launch<KvV4, 2>(SparseMlaDecodeParams const&, cudaStream_t);
extern template cudaError_t launch<KvBf16, 1>(SparseMlaDecodeParams const&, cudaStream_t);
extern template cudaError_t launch<KvBf16, 2>(SparseMlaDecodeParams const&, cudaStream_t);

char const* why_not_alone(KvFormat, int h_q) { return h_q > 64 ? "more than 64 heads are a pair's" : nullptr; }
char const* why_not_a_pair(KvFormat, int) { return nullptr; }

template <int kCtas>
int run(SparseMlaDecodeParams const& p, KvFormat format, void* stream) {
  auto const s = static_cast<cudaStream_t>(stream);
  switch (format) {
    case KvFormat::kV32: return launch<KvV32, kCtas>(p, s);
    case KvFormat::kV4: return launch<KvV4, kCtas>(p, s);
    case KvFormat::kBf16: return launch<KvBf16, kCtas>(p, s);
  }
  return cudaErrorInvalidValue;
}
}  // namespace decode

SparseMlaDecodeImpl const kSparseMlaDecodeHeads64 = {"sm100 heads64", 10, decode::why_not_alone, decode::run<1>};
SparseMlaDecodeImpl const kSparseMlaDecodePair = {"sm100 pair", 10, decode::why_not_a_pair, decode::run<2>};
}  // namespace dsa::sm100
