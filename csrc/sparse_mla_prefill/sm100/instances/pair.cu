// The kernel as an implementation of the op.
#include <cuda_runtime_api.h>

#include <limits>

#include "sparse_mla_prefill/op.h"

namespace dsa::sm100 {
namespace prefill {
template <int kDQk>
cudaError_t launch(SparseMlaPrefillParams const&, cudaStream_t);
extern template cudaError_t launch<576>(SparseMlaPrefillParams const&, cudaStream_t);
extern template cudaError_t launch<512>(SparseMlaPrefillParams const&, cudaStream_t);

char const* why_unsupported(SparseMlaPrefillParams const& p) {
  if (p.d_qk != 576 && p.d_qk != 512) return "d_qk is neither 576 nor 512";
  if (p.d_v != 512) return "d_v is not 512";
  int64_t const batch_rows = kv_batch_rows(p);
  if (batch_rows < 0) return "the sequences of kv are not whole rows apart";
  if ((p.batch - 1) * batch_rows + p.s_kv > std::numeric_limits<int>::max()) return "kv spans more than 2^31 - 1 rows";
  return nullptr;
}

int run(SparseMlaPrefillParams const& p, void* stream) {
  auto const s = static_cast<cudaStream_t>(stream);
  return p.d_qk == 576 ? launch<576>(p, s) : launch<512>(p, s);
}
}  // namespace prefill

SparseMlaPrefillImpl const kSparseMlaPrefillPair = {"sm100 pair", 10, prefill::why_unsupported, prefill::run};
}  // namespace dsa::sm100
