// What the outputs of a team's members are multiplied by (few_heads_team.cuh): producer warps work it out once a CTA,
// while outputs are on their way.
#pragma once

#include "few_heads_team.cuh"

namespace dsa::sm90::decode_few_heads {

// A lane has one member and one head; a warp two heads.
constexpr int kMostMembers = 2 * kFewHeadsTeams[0], kWarpHeads = 32 / kMostMembers;
static_assert(kMostMembers == 16);
template <int kHeads>
constexpr int kWeighingWarps = kHeads / kWarpHeads;
static_assert(kWeighingWarps<16> <= kProducerWarps);

// By each producer warp, when it has no more to do. One CTA writes the query's lse.
template <int kHeads, class Shared>
__device__ __forceinline__ void weigh(DecodeParams const& p, Shared& smem, int warp, int lane) {
  if (warp >= kWeighingWarps<kHeads>) return;
  constexpr int kMine = TeamInbox<kHeads>::kMine;
  int const member = lane % kMostMembers, head = warp * kWarpHeads + lane / kMostMembers;
  float const sink = p.attn_sink != nullptr && head < p.h_q ? p.attn_sink[head] : negative_infinity();
  auto const largest = [](float a, float b) { return fmaxf(a, b); };
  auto const plus = [](float a, float b) { return a + b; };
  auto const over_members = [](float x, auto op) {
    CUTE_UNROLL
    for (int mask = 1; mask < kMostMembers; mask *= 2) x = op(x, __shfl_xor_sync(~0u, x, mask));
    return x;
  };

  smem.team.told.wait(0);
  float sum = 0.f, weight = 0.f, reference = negative_infinity();
  if (member < 2 * p.team) {
    auto const& theirs = smem.stats(p.team)[member];
    // which: 0 a warp's sum, 1 its weight, 2 the consumer's reference.
    auto const stat = [&](int of_warp, int which) {
      int const i = which * kMine + head / 8 * 2 + head % 2;
      return reinterpret_cast<float const*>(&theirs.warp[of_warp].vector[i / 4][head % 8 / 2])[i % 4];
    };
    CUTE_UNROLL
    for (int w = 0; w < 4; ++w) {
      sum += stat(w, 0);
      weight += stat(w, 1);
    }
    reference = stat(0, 2);
  }
  float const top = exponent_offset(over_members(reference, largest)), counts = exp2f(reference - top);
  float const total = over_members(sum * counts, plus);
  float const scale = output_scale(total, top, sink);
  if (member < 2 * p.team) smem.factors()[member * kHeads + head] = weight == 0.f ? 0.f : sum / weight * counts * scale;
  __syncwarp();
  if (lane == 0) smem.team.weighed.arrive();
  if (cluster_rank() == 0 && member == 0 && head < p.h_q) {
    auto const& piece = smem.pieces[0];
    p.lse[int64_t(piece.batch * p.s_q + piece.token) * p.h_q + head] = natural_lse(total, top);
  }
}

}  // namespace dsa::sm90::decode_few_heads
