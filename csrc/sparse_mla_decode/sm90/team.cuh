// A query's keys spread over the CTAs of a cluster, its team, for 64 heads: they add up their outputs through shared
// memory, instead of writing parts of a query for a second kernel. Clusters of more than two leave some SMs unused (an
// H200 holds 66 of two, 30 of four, 15 of eight, 7 of sixteen). Where there is room two teams have half of the value
// columns each, and all scores: half of the values to multiply, and half as much to send.
//
// Each CTA of the team finishes an equal share of each warp's columns. At the end of its keys it sends every other's
// share of its output there, divided by its own sum, as the threads hold it, and adds up what comes in the order of the
// ranks: the same bits on every launch. Warps send to the CTAs in different orders (first_cta): if all went to the same
// one at once, sending would take twice as long. Warps without a head send nothing. Q and the key buffers make room:
//
//   barrier    arrives                                            waits
//   ready      4 warps of both consumers of all CTAs, when they   consumers, before they send
//              read keys no more
//   received   bytes (one thread expects them from the start)     consumers, before they add up
#pragma once

#include "arch/any/cluster.cuh"
#include "arch/sm90/remote.cuh"
#include "attention/sm90/heads64/config.h"
#include "attention/sm90/heads64/softmax.cuh"
#include "work.cuh"

namespace dsa::sm90 {

// How a consumer's columns, as vectors of four floats of a thread, are shared by a team. The last share is the
// smallest.
template <class Config>
struct TeamShares {
  static constexpr int kVectors = heads64::kBlockH * Config::kOwnV / (128 * 4);

  int team, each;

  __device__ __forceinline__ constexpr explicit TeamShares(int team) : team(team), each((kVectors + team - 1) / team) {}

  __device__ __forceinline__ constexpr int count(int share) const { return min(max(kVectors - share * each, 0), each); }
  // Warps begin with different CTAs. Which one finishes a warp's share, and which share a CTA finishes.
  static __device__ __forceinline__ int first_cta(int consumer, int warp, int team) {
    return (consumer * 4 + warp) % team;
  }
  __device__ __forceinline__ int share_of(int rank, int first_cta) const {
    return rank < first_cta ? rank - first_cta + team : rank - first_cta;
  }
};

// What comes from the team: its vectors [rank][consumer][of a share][thread], and each rank's lse in base 2.
template <class Config>
struct TeamInbox {
  // Shares are rounded up: three CTAs have 11 of 32 vectors at most, six have six.
  float4 part[2 * (TeamShares<Config>::kVectors + 4) * 128];
  float lse[kLargestTeam][heads64::kBlockH];

  // Of a consumer's four warps, each of which has 16 heads.
  static __device__ __forceinline__ int warps_with_heads(DecodeParams const& p) {
    return min((p.h_q - DecodeWork::head_of(p) + 15) / 16, 4);
  }
  static __device__ __forceinline__ uint32_t bytes(DecodeParams const& p) {
    TeamShares<Config> const shares(p.team);
    int const warps = warps_with_heads(p), rank = int(cluster_rank());
    uint32_t bytes = p.team * warps * 16 * uint32_t(sizeof(float));
    for (int consumer = 0; consumer < 2; ++consumer)
      for (int warp = 0; warp < warps; ++warp)
        bytes += shares.count(shares.share_of(rank, shares.first_cta(consumer, warp, p.team))) * p.team * 32 *
                 uint32_t(sizeof(float4));
    return bytes;
  }
};

struct TeamBarriers {
  Barrier ready, received;

  // By one thread, before the team meets.
  __device__ __forceinline__ void init(uint32_t team, uint32_t inbox_bytes) {
    ready.init(team * 8);
    received.init(1);
    cutlass::arch::fence_barrier_init();
    received.arrive_and_expect_tx(inbox_bytes);
  }
};

// One thread of a consumer: rows r and r + 8 of its warp's 16, two columns of every eight.
template <class Config, class Shared, int kTeam>
class TeamSum {
 public:
  __device__ __forceinline__ TeamSum(Shared& smem, int me, int lane, int warp)
      : smem_(smem),
        me_(me),
        lane_(lane),
        warp_(warp),
        thread_(warp * 32 + lane),
        rank_(cluster_rank()),
        first_cta_(Shares::first_cta(me, warp, kTeam)) {}

  // Once the team's CTAs need Q and their key buffers no more.
  template <class TensorO>
  __device__ __forceinline__ void send(heads64::RowStats const& stats, TensorO const& rO) {
    float scale[2];
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) scale[r] = stats.sum[r] == 0.f ? 0.f : 1.f / stats.sum[r];
    CUTE_UNROLL
    for (int share = 0; share < kTeam; ++share) {
      int const to = share + first_cta_ < kTeam ? share + first_cta_ : share + first_cta_ - kTeam;
      uint32_t const barrier = remote_address(&smem_.team.received, to);
      uint32_t const vectors = remote_address(part(rank_), to);
      CUTE_UNROLL
      for (int v = 0; v < kShare && share * kShare + v < Shares::kVectors; ++v) {
        int const i = (share * kShare + v) * 4;
        store_remotely(vectors + v * 128 * 16,
                       make_float4(rO(i) * scale[0], rO(i + 1) * scale[0], rO(i + 2) * scale[1], rO(i + 3) * scale[1]),
                       barrier);
      }
      if (me_ == heads64::kOdd && lane_ % 4 == 0) {
        CUTE_UNROLL
        for (int r = 0; r < 2; ++r)
          store_remotely(remote_address(&inbox().lse[rank_][row(r)], to),
                         stats.sum[r] == 0.f ? negative_infinity() : log2f(stats.sum[r]) + stats.reference[r], barrier);
      }
    }
  }

  __device__ __forceinline__ void finish(DecodeParams const& p) {
    wait_for_remote(smem_.team.received, 0);
    // (Worked out again: over the products there are no registers for it.)
    int const query = DecodeWork::part_of(p), first_head = DecodeWork::head_of(p);
    float weight[2][kTeam], sum[2], reference[2], scale[2];
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float top = negative_infinity();
      CUTE_UNROLL
      for (int from = 0; from < kTeam; ++from) {
        weight[r][from] = inbox().lse[from][row(r)];
        top = fmaxf(top, weight[r][from]);
      }
      reference[r] = exponent_offset(top);
      sum[r] = 0.f;
      CUTE_UNROLL
      for (int from = 0; from < kTeam; ++from) {
        weight[r][from] = exp2f(weight[r][from] - reference[r]);
        sum[r] += weight[r][from];
      }
      int const head = first_head + row(r);
      float const sink = p.attn_sink != nullptr && head < p.h_q ? p.attn_sink[head] : negative_infinity();
      scale[r] = output_scale(sum[r], reference[r], sink);
      if (rank_ == 0 && p.column_cta() == 0 && me_ == heads64::kOdd && lane_ % 4 == 0 && head < p.h_q)
        p.lse[int64_t(query) * p.h_q + head] = natural_lse(sum[r], reference[r]);
    }
    int const share = Shares(kTeam).share_of(int(rank_), first_cta_), count = Shares(kTeam).count(share);
    int const column = me_ * heads64::kHalfV + p.column_cta() * Config::kOwnV + share * kShare * 8;
    auto* const out = static_cast<__nv_bfloat16*>(p.out) + query / p.s_q * p.out_stride_batch +
                      query % p.s_q * p.out_stride_token + first_head * p.out_stride_head + column + lane_ % 4 * 2;
    CUTE_UNROLL
    for (int v = 0; v < kShare; ++v) {
      if (v >= count) return;
      float acc[4] = {};
      CUTE_UNROLL
      for (int from = 0; from < kTeam; ++from) {
        float4 const theirs = part(from)[v * 128];
        acc[0] += weight[0][from] * theirs.x;
        acc[1] += weight[0][from] * theirs.y;
        acc[2] += weight[1][from] * theirs.z;
        acc[3] += weight[1][from] * theirs.w;
      }
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r)
        if (first_head + row(r) < p.h_q)
          *reinterpret_cast<uint32_t*>(out + row(r) * p.out_stride_head + v * 8) =
              pack_bf16(acc[r * 2] * scale[r], acc[r * 2 + 1] * scale[r]);
    }
  }

 private:
  using Inbox = TeamInbox<Config>;
  using Shares = TeamShares<Config>;
  static constexpr int kShare = (Shares::kVectors + kTeam - 1) / kTeam;
  static_assert(kShare * kTeam <= Shares::kVectors + 4);

  __device__ __forceinline__ Inbox& inbox() const { return *reinterpret_cast<Inbox*>(smem_.q); }
  // This thread's first vector of what one rank sends.
  __device__ __forceinline__ float4* part(int from) const {
    return inbox().part + (from * 2 + me_) * kShare * 128 + thread_;
  }
  __device__ __forceinline__ int row(int r) const { return warp_ * 16 + r * 8 + lane_ / 4; }

  Shared& smem_;
  int const me_, lane_, warp_, thread_;
  uint32_t const rank_;
  int const first_cta_;  // that finishes a share of this warp's
};

// The work of a CTA of a team: one tile.
template <class Config, class Shared>
struct TeamWork : DecodeWork {
  static constexpr bool kTeam = true;
  using DecodeWork::DecodeWork;

  // Shares are equal, so that the last ones may have units without keys.
  static __device__ __forceinline__ DecodeRange range_after_grid_before(DecodeParams const& p) {
    int const query = part_of(p), batch = query / p.s_q, token = query % p.s_q, rank = blockIdx.x % p.team;
    wait_for_grid_before();
    int const units = p.shape.units(p.length(p.keys[0], batch, token), p.length(p.keys[1], batch, token));
    int const each = (units + p.team - 1) / p.team;
    return {{query, rank * each}, {query, (rank + 1) * each}};
  }

  template <class TensorO>
  static __device__ __forceinline__ void write_tile(DecodeParams const& p, DecodeTile const&,
                                                    heads64::RowStats const& stats, TensorO const& rO, void* smem,
                                                    int me, int lane, int warp) {
    Shared& shared = *static_cast<Shared*>(smem);
    // (Only products have read where the others will write, and the warp's lanes have met where they waited for those.)
    if (lane < p.team) arrive_remotely(remote_address(&shared.team.ready, lane));
    if (warp >= TeamInbox<Config>::warps_with_heads(p)) return;
    wait_for_remote(shared.team.ready, 0);
    auto const with = [&](auto team) {
      TeamSum<Config, Shared, decltype(team)::value> sum(shared, me, lane, warp);
      sum.send(stats, rO);
      sum.finish(p);
    };
    if constexpr (Config::kColumnCtas > 1)
      if (p.team == kLargestTeam) return with(Int<kLargestTeam>{});  // never with all columns (team_for)
    p.team == 2   ? with(Int<2>{})
    : p.team == 3 ? with(Int<3>{})
    : p.team == 4 ? with(Int<4>{})
    : p.team == 6 ? with(Int<6>{})
                  : with(Int<8>{});
  }
};

}  // namespace dsa::sm90
