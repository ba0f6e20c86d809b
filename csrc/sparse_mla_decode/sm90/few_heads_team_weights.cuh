// What the outputs of a team's members are multiplied by (few_heads_team.cuh): when producer warps have no more to do,
// two of them tell all CTAs of their consumers' sums, and all work it out once a CTA, while outputs are on their way.
#pragma once

#include "few_heads_team.cuh"

namespace dsa::sm90::decode_few_heads {

// A lane has one member and one head; a warp two heads.
constexpr int kMostMembers = 2 * kFewHeadsTeams[0], kWarpHeads = 32 / kMostMembers;
static_assert(kMostMembers == 16);
template <int kHeads>
constexpr int kWeighingWarps = kHeads / kWarpHeads;
static_assert(kWeighingWarps<16> <= kProducerWarps);

// By one warp for each consumer, which has left its threads' sums. Four lanes tell a CTA.
template <int kHeads, class Shared>
__device__ __forceinline__ void tell(DecodeParams const& p, Shared& smem, int consumer, int lane) {
  using Inbox = TeamInbox<kHeads>;
  constexpr int kMine = Inbox::kMine;
  auto const& left = smem.sums_left(consumer);
  int const rank = int(cluster_rank()), to = lane / 4;
  Outbox const theirs(&smem.stats(p.team)[rank * 2 + consumer].vector[0][lane % 4], smem.team.told, min(to, p.team - 1),
                      to == rank);
  smem.team.ready.wait(0);

  smem.team.summed[consumer].wait(0);
  typename Inbox::LaneHeads const reference = smem.references_left(consumer)[lane % 4];
  float mine[kMine] = {};  // of 16 lanes sums, and of 16 weights
  CUTE_UNROLL
  for (int w = 0; w < 4; ++w) {
    typename Inbox::LaneHeads const some = left[w][lane / 16][lane % 16];
    CUTE_UNROLL
    for (int h = 0; h < kMine; ++h) mine[h] += some.of[h];
  }
  float all[Inbox::kStatVectors * 4] = {};
  CUTE_UNROLL
  for (int h = 0; h < kMine; ++h) {
    CUTE_UNROLL
    for (int mask = 4; mask <= 8; mask *= 2) mine[h] += __shfl_xor_sync(~0u, mine[h], mask);
    float const other = __shfl_xor_sync(~0u, mine[h], 16);
    all[h] = lane < 16 ? mine[h] : other;
    all[kMine + h] = lane < 16 ? other : mine[h];
    all[2 * kMine + h] = reference.of[h];
  }
  if (to < p.team) {
    CUTE_UNROLL
    for (int v = 0; v < Inbox::kStatVectors; ++v)
      theirs.put(v * 4, make_float4(all[v * 4], all[v * 4 + 1], all[v * 4 + 2], all[v * 4 + 3]));
  }
  __syncwarp();
  if (lane == 0) smem.team.told.arrive();
}

// By each producer warp. One CTA writes the query's lse.
template <int kHeads, class Shared>
__device__ __forceinline__ void weigh(DecodeParams const& p, Shared& smem, int warp, int lane) {
  if (warp < 2) tell<kHeads>(p, smem, warp, lane);
  if (warp >= kWeighingWarps<kHeads>) return;
  constexpr int kMine = TeamInbox<kHeads>::kMine;
  int const member = lane % kMostMembers, head = warp * kWarpHeads + lane / kMostMembers;
  float const sink = (p.attn_sink != nullptr && head < p.h_q ? p.attn_sink[head] : negative_infinity()) * kLog2e;
  auto const largest = [](float a, float b) { return fmaxf(a, b); };
  auto const plus = [](float a, float b) { return a + b; };
  auto const over_members = [](float x, auto op) {
    CUTE_UNROLL
    for (int mask = 1; mask < kMostMembers; mask *= 2) x = op(x, __shfl_xor_sync(~0u, x, mask));
    return x;
  };

  // A sum, a weight and a reference. (The compiler would find their places after the wait.)
  bool const is_member = member < 2 * p.team;
  auto* const tiles = static_cast<char*>(smem.own_tiles(0));
  auto const& theirs = smem.stats(p.team)[is_member ? member : 0];
  int places[3];
  CUTE_UNROLL
  for (int which = 0; which < 3; ++which) {
    int const i = which * kMine + head / 8 * 2 + head % 2;
    auto const* const first = reinterpret_cast<char const*>(&theirs.vector[i / 4][head % 8 / 2]);
    places[which] = int(first - tiles) + i % 4 * int(sizeof(float));
    asm volatile("" : "+r"(places[which]));
  }
  auto const stat = [&](int which) { return *reinterpret_cast<float const*>(tiles + places[which]); };

  smem.team.told.wait(0);
  float const sum = is_member ? stat(0) : 0.f, weight = stat(1), reference = is_member ? stat(2) : negative_infinity();
  float const top = exponent_offset(over_members(reference, largest)), counted = sum * exp2_approx(reference - top);
  float const total = over_members(counted, plus);
  // (As output_scale has it, but for one division, which need not be exact.)
  float const factor = __fdividef(counted, weight * (total + exp2_approx(sink - top)));
  if (is_member) smem.factors()[member * kHeads + head] = weight == 0.f ? 0.f : factor;
  __syncwarp();
  if (lane == 0) smem.team.weighed.arrive();
  if (cluster_rank() == 0 && member == 0 && head < p.h_q) {
    auto const& piece = smem.pieces[0];
    p.lse[int64_t(piece.batch * p.s_q + piece.token) * p.h_q + head] = natural_lse(total, top);
  }
}

}  // namespace dsa::sm90::decode_few_heads
