// The kernel for few heads as an implementation of the op.
#include <cuda_runtime_api.h>

#include "sparse_mla_decode/sm90/launch.h"

namespace dsa::sm90 {
namespace decode_heads64 {
template <class Format>
Team team_for(SparseMlaDecodeParams const&);
template <class Format>
cudaError_t launch_team(SparseMlaDecodeParams const&, Team const&, cudaStream_t);
}  // namespace decode_heads64

namespace decode_few_heads {
template <class Format, int kHeads>
cudaError_t launch(SparseMlaDecodeParams const&, cudaStream_t);
extern template cudaError_t launch<KvV32, 8>(SparseMlaDecodeParams const&, cudaStream_t);
extern template cudaError_t launch<KvV32, 16>(SparseMlaDecodeParams const&, cudaStream_t);
extern template cudaError_t launch<KvV4, 8>(SparseMlaDecodeParams const&, cudaStream_t);
extern template cudaError_t launch<KvV4, 16>(SparseMlaDecodeParams const&, cudaStream_t);
extern template cudaError_t launch<KvBf16, 8>(SparseMlaDecodeParams const&, cudaStream_t);
extern template cudaError_t launch<KvBf16, 16>(SparseMlaDecodeParams const&, cudaStream_t);

char const* why_unsupported(KvFormat, int h_q) { return h_q > 16 ? "more than 16 heads" : nullptr; }

template <class Format>
cudaError_t run_format(SparseMlaDecodeParams const& p, cudaStream_t s) {
  // Few queries: to have no second kernel is worth more than to have no empty heads, if a CTA has little to do.
  constexpr int kFewUnits = 4;
  Team const team = decode_heads64::team_for<Format>(p);
  if (team.ctas >= 4 && team_shape(p).most_units() <= kFewUnits * team.ctas)
    return decode_heads64::launch_team<Format>(p, team, s);
  return p.h_q <= 8 ? launch<Format, 8>(p, s) : launch<Format, 16>(p, s);
}

int run(SparseMlaDecodeParams const& p, KvFormat format, void* stream) {
  auto const s = static_cast<cudaStream_t>(stream);
  switch (format) {
    case KvFormat::kV32: return run_format<KvV32>(p, s);
    case KvFormat::kV4: return run_format<KvV4>(p, s);
    case KvFormat::kBf16: return run_format<KvBf16>(p, s);
  }
  return cudaErrorInvalidValue;
}
}  // namespace decode_few_heads

SparseMlaDecodeImpl const kSparseMlaDecodeFewHeads = {"sm90 few heads", 9, decode_few_heads::why_unsupported,
                                                      decode_few_heads::run};
}  // namespace dsa::sm90
