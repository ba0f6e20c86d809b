// The 64-head kernel as an implementation of the op.
#include <cuda_runtime_api.h>

#include "sparse_mla_prefill/op.h"

namespace dsa::sm90 {
namespace prefill_heads64 {
template <int kDQk>
cudaError_t launch(SparseMlaPrefillParams const&, cudaStream_t);
extern template cudaError_t launch<576>(SparseMlaPrefillParams const&, cudaStream_t);
extern template cudaError_t launch<512>(SparseMlaPrefillParams const&, cudaStream_t);

char const* why_unsupported(SparseMlaPrefillParams const& p) {
  if (p.d_qk != 576 && p.d_qk != 512) return "d_qk is neither 576 nor 512";
  if (p.d_v != 512) return "d_v is not 512";
  return nullptr;
}

int run(SparseMlaPrefillParams const& p, void* stream) {
  auto const s = static_cast<cudaStream_t>(stream);
  return p.d_qk == 576 ? launch<576>(p, s) : launch<512>(p, s);
}
}  // namespace prefill_heads64

SparseMlaPrefillImpl const kSparseMlaPrefillHeads64 = {"sm90 heads64", 9, prefill_heads64::why_unsupported,
                                                       prefill_heads64::run};
}  // namespace dsa::sm90
