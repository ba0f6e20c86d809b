// The kernel for few heads as an implementation of the op.
#include <cuda_runtime_api.h>

#include "sparse_mla_prefill/op.h"

namespace dsa::sm90 {
namespace prefill_few_heads {
template <int kDQk, int kHeads>
cudaError_t launch(SparseMlaPrefillParams const&, cudaStream_t);
extern template cudaError_t launch<576, 8>(SparseMlaPrefillParams const&, cudaStream_t);
extern template cudaError_t launch<576, 16>(SparseMlaPrefillParams const&, cudaStream_t);
extern template cudaError_t launch<512, 8>(SparseMlaPrefillParams const&, cudaStream_t);
extern template cudaError_t launch<512, 16>(SparseMlaPrefillParams const&, cudaStream_t);

char const* why_unsupported(SparseMlaPrefillParams const& p) {
  if (p.d_qk != 576 && p.d_qk != 512) return "d_qk is neither 576 nor 512";
  if (p.d_v != 512) return "d_v is not 512";
  if (p.h_q > 16) return "more than 16 heads";
  return nullptr;
}

template <int kDQk>
cudaError_t run_d(SparseMlaPrefillParams const& p, cudaStream_t s) {
  return p.h_q <= 8 ? launch<kDQk, 8>(p, s) : launch<kDQk, 16>(p, s);
}

int run(SparseMlaPrefillParams const& p, void* stream) {
  auto const s = static_cast<cudaStream_t>(stream);
  return p.d_qk == 576 ? run_d<576>(p, s) : run_d<512>(p, s);
}
}  // namespace prefill_few_heads

SparseMlaPrefillImpl const kSparseMlaPrefillFewHeads = {"sm90 few heads", 9, prefill_few_heads::why_unsupported,
                                                        prefill_few_heads::run};
}  // namespace dsa::sm90
