// Who finishes what of a team's output (team.cuh), and what its CTAs keep in shared memory for each other.
#pragma once

#include <algorithm>
#include <type_traits>

#include "arch/any/cluster.cuh"
#include "attention/sm90/heads64/config.h"
#include "team_shares.cuh"
#include "work.cuh"

namespace dsa::sm90 {

// Of a consumer's outputs: a thread has so many vectors of eight halves, of rows r and r + 8 and a quad's 16 columns.
template <class Config>
struct TeamColumns {
  static constexpr int kVectors = heads64::kBlockH * Config::kOwnV / (128 * 8), kTiles = Config::kOwnV / kTileCols;
  static constexpr int kTileVectors = kVectors / kTiles;
  using Shares = TeamShares<kVectors>;

  // In equal shares for the team.
  static __device__ __forceinline__ Shares shares(DecodeParams const& p) { return {p.team, p.share.divisor}; }
  // Tiles that a share may be of.
  static __device__ __forceinline__ int most_tiles(Shares const& shares) {
    return shares.each == 1 || shares.each == 2 || shares.each == kTileVectors ? 1 : 2;
  }
  static __device__ __forceinline__ int first_tile(Shares const& shares, int share) {
    return min(share * shares.each / kTileVectors, kTiles - 1);
  }
};

// The CTA that finishes a warp's first share: if all warps sent to the same one at the same time it would take twice as
// long.
__device__ __forceinline__ int first_cta(int team, int consumer, int warp) { return (consumer * 4 + warp) * team / 8; }

// What parts of an output are multiplied by, of each place (TeamSum::place) and tile of its share, of both consumers'
// warps. Rows r and r + 8 of a warp's 16 lie side by side.
struct TeamFactors {
  float2 of[kLargestTeam][2][4][8];
};
// Parts that a CTA receives, at most: vectors of the shares of each team's others.
constexpr int kPartBytes = std::max({15 * 1, 7 * 2, 5 * 3, 3 * 4, 2 * 6, 1 * 8}) * 8 * 32 * 16;
// Both go where Q was, if there is room.
template <class Config>
constexpr bool kFactorsFitQ = kPartBytes + sizeof(TeamFactors) <= Config::kQBytes;

// What comes from the team elsewhere.
struct TeamLse {
  float2 of[2 * kLargestTeam][4][8];  // of each CTA's consumers and their warps, in base 2
};
struct TeamLseAndFactors {
  TeamLse lse;
  TeamFactors factors;
};
template <class Config>
using TeamMail = std::conditional_t<kFactorsFitQ<Config>, TeamLse, TeamLseAndFactors>;

struct TeamShared {
  Barrier free, told;
  Barrier staged[2][4], received[2][4];  // of each consumer's warps
  // What TeamSum needs: over the products there are no registers for it.
  int rank, query, head, column_cta;
  int warps;  // of each consumer's four that have heads

  // By one thread, before any other touches it. (By the lanes of one warp, one after the other, all of it took longer
  // than to learn that the kernel before has ended.)
  template <class Config>
  __device__ __forceinline__ void init(DecodeParams const& p) {
    auto const place = p.place();
    rank = int(cluster_rank());
    query = place.part;
    head = place.head;
    column_cta = place.column_cta;
    warps = with_heads(p, place);
    free.init(p.team);
    told.init(1);
    cutlass::arch::fence_barrier_init();
    told.arrive_and_expect_tx(2 * p.team * warps * uint32_t(sizeof(TeamLse::of[0][0])));
  }
  // By another, for one warp of each consumer.
  template <class Config>
  __device__ __forceinline__ void init_warps(DecodeParams const& p, int warp) {
    using Columns = TeamColumns<Config>;
    if (warp >= with_heads(p, p.place())) return;
    auto const shares = Columns::shares(p);
    for (int consumer = 0; consumer < 2; ++consumer) {
      staged[consumer][warp].init(1);
      received[consumer][warp].init(2);
      cutlass::arch::fence_barrier_init();
      // Vectors that come from each of the others.
      int const vectors = shares.count(shares.share_of(int(cluster_rank()), first_cta(p.team, consumer, warp)));
      received[consumer][warp].arrive_and_expect_tx((p.team - 1) * vectors * 32 * uint32_t(sizeof(uint4)) +
                                                    p.team * Columns::most_tiles(shares) *
                                                        uint32_t(sizeof(TeamFactors::of[0][0][0])));
    }
  }

 private:
  static __device__ __forceinline__ int with_heads(DecodeParams const& p, DecodeParams::Place const& place) {
    return min((p.h_q - place.head + 15) / 16, 4);
  }
};

}  // namespace dsa::sm90
