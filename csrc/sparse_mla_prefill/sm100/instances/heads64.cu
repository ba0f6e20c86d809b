// The kernel for 64 heads as an implementation of the op.
#include <cuda_runtime_api.h>

#include "sparse_mla_prefill/sm100/refusals.h"

namespace dsa::sm100 {
namespace prefill_heads64 {
template <int kDQk>
cudaError_t launch(SparseMlaPrefillParams const&, cudaStream_t);
extern template cudaError_t launch<576>(SparseMlaPrefillParams const&, cudaStream_t);
extern template cudaError_t launch<512>(SparseMlaPrefillParams const&, cudaStream_t);

char const* why_not_used(SparseMlaPrefillParams const& p) {
  if (p.h_q > 64) return "more than 64 heads are a pair's";
  return why_unsupported(p);
}

int run(SparseMlaPrefillParams const& p, void* stream) {
  auto const s = static_cast<cudaStream_t>(stream);
  return p.d_qk == 576 ? launch<576>(p, s) : launch<512>(p, s);
}
}  // namespace prefill_heads64

SparseMlaPrefillImpl const kSparseMlaPrefillHeads64 = {"sm100 heads64", 10, prefill_heads64::why_not_used,
                                                       prefill_heads64::run};
}  // namespace dsa::sm100
