// The kernel for 128 heads as an implementation of the op.
#include <cuda_runtime_api.h>

#include "sparse_mla_prefill/sm100/refusals.h"

namespace dsa::sm100 {
namespace prefill_pair {
template <int kDQk>
cudaError_t launch(SparseMlaPrefillParams const&, cudaStream_t);
extern template cudaError_t launch<576>(SparseMlaPrefillParams const&, cudaStream_t);
extern template cudaError_t launch<512>(SparseMlaPrefillParams const&, cudaStream_t);

int run(SparseMlaPrefillParams const& p, void* stream) {
  auto const s = static_cast<cudaStream_t>(stream);
  return p.d_qk == 576 ? launch<576>(p, s) : launch<512>(p, s);
}
}  // namespace prefill_pair

SparseMlaPrefillImpl const kSparseMlaPrefillPair = {"sm100 pair", 10, why_unsupported, prefill_pair::run};
}  // namespace dsa::sm100
