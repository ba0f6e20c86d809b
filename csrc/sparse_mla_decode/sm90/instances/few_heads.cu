// The kernel for few heads as an implementation of the op, and which calls get teams.
#include <cuda_runtime_api.h>

#include "sparse_mla_decode/sm90/few_heads_team.cuh"
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
int most_teams(int ctas, int device);
template <class Format, int kHeads>
cudaError_t launch(SparseMlaDecodeParams const&, Team const&, cudaStream_t);

char const* why_unsupported(KvFormat, int h_q) { return h_q > 16 ? "more than 16 heads" : nullptr; }

// So few queries that CTAs of a team of heads64 have a pair of blocks each (the largest teams, of which two may share
// the value columns): that many CTAs are then worth more than that no rows are empty.
bool takes_heads64(SparseMlaDecodeParams const& p, Team const& team) {
  return team && team_shape(p).most_units() <= team.ctas;
}

// The team that a call's queries get here: the largest with which all of them run at once, unless parts would be so
// much shorter that they take less time.
Team team_for(SparseMlaDecodeParams const& p, int (*most_teams)(int ctas, int device)) {
  int device = 0, sms = 0;
  DecodeShape const shape = shape_of(p);
  if (p.batch_invariant || cudaGetDevice(&device) ||
      cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device) || shape.queries > sms)
    return {};
  // The longest part that the queries would be cut into (EvenCuts). Parts, which another kernel adds up, take in the
  // end about as many units' time more than a team does.
  constexpr int kPartsCost = 3;
  int const units = shape.most_units(), parts = shape.parts(sms), pieces = std::min(parts / shape.queries, units);
  int const longest = std::min((units + pieces - 1) / pieces, shape.queries * units / parts + kSecondUnits);
  for (int const ctas : kFewHeadsTeams) {
    int const members = 2 * ctas;
    if (members > units || (units + members - 1) / members >= longest + kPartsCost) continue;
    if (shape.queries * ctas <= sms && shape.queries <= most_teams(ctas, device)) return {ctas};
  }
  return {};
}

template <class Format, int kHeads>
cudaError_t run_heads(SparseMlaDecodeParams const& p, cudaStream_t s) {
  return launch<Format, kHeads>(p, team_for(p, most_teams<Format, kHeads>), s);
}

template <class Format>
cudaError_t run_format(SparseMlaDecodeParams const& p, cudaStream_t s) {
  Team const team = decode_heads64::team_for<Format>(p);
  if (takes_heads64(p, team)) return decode_heads64::launch_team<Format>(p, team, s);
  return p.h_q <= 8 ? run_heads<Format, 8>(p, s) : run_heads<Format, 16>(p, s);
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
