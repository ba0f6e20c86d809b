// What a consumer of a team (few_heads_team.cuh) works on: one of its query's equal pieces.
#pragma once

#include "few_heads_team.cuh"
#include "rows.cuh"

namespace dsa::sm90::decode_few_heads {

struct TeamPiece {
  int batch, token, head;
  int blocks;      // at least one: where there are no keys it is masked
  KeyRun runs[2];  // in either cache

  // Of a consumer of this CTA, by lengths that may still change.
  static __device__ __forceinline__ TeamPiece of(DecodeParams const& p, int consumer) {
    int query, rank, batch, token;
    p.teams(query, rank, int(blockIdx.x));
    p.tokens(batch, token, query);
    int const length[2] = {DecodeParams::length(p.keys[0], batch, token),
                           DecodeParams::length(p.keys[1], batch, token)};
    int const units = p.shape.units(length[0], length[1]), first_blocks = DecodeShape::blocks_of(length[0]);
    int const member = rank * 2 + consumer, members = p.team * 2;
    int const each = p.teams.div(units / 2), left = units - each * members;  // (units / members)
    auto const before = [&](int m) { return m * each + p.teams.div(m * left / 2); };
    int const begin = before(member), end = before(member + 1);
    int const of_first = max(min(end, first_blocks) - begin, 0), from = max(begin - first_blocks, 0);
    int const blocks = max(end - begin, 1);
    auto const idx = [&](KvSelection const& keys) {
      return keys.idx + (batch * keys.idx_stride_batch + token * keys.idx_stride_token);
    };
    return {batch,
            token,
            0,
            blocks,
            {{idx(p.keys[0]) + begin * kBlockK, length[0] - begin * kBlockK, of_first, 0},
             {idx(p.keys[1]) + from * kBlockK, end > begin ? length[1] - from * kBlockK : 0, blocks - of_first, 1}}};
  }
};

// A consumer's one tile, a piece of a query, but for its end.
template <class Shared>
class PieceWork {
 public:
  using Params = DecodeParams;

  static constexpr bool kTeam = true;

  __device__ __forceinline__ PieceWork(Params const& params, Shared& smem, int consumer)
      : params_(params), smem_(smem), me_(consumer) {}

  __device__ __forceinline__ bool done() const { return done_; }
  __device__ __forceinline__ void advance() { done_ = true; }
  __device__ __forceinline__ TeamPiece const& tile() const { return smem_.pieces[me_]; }
  __device__ __forceinline__ int blocks() const { return tile().blocks; }

 protected:
  Params const& params_;
  Shared& smem_;
  int const me_;

 private:
  bool done_ = false;
};

template <class Config, class Shared>
class TeamWork : public PieceWork<Shared> {
 public:
  using PieceWork<Shared>::PieceWork;

  template <class Stats>
  __device__ __forceinline__ void last_products_run(Stats const&, int, int) const {}

  template <class Stats, class TensorO>
  __device__ __forceinline__ void finish(Stats const& stats, TensorO const& rO, int lane, int warp) {
    // (Only products have read where the others will write, and the warp's lanes have met where they waited for those.)
    bool const makes_room = me_ == 0 || TeamInbox<Config::kHeads>::template both_make_room<Shared>(params_.team);
    if (makes_room && lane < params_.team) arrive_remotely(remote_address(&smem_.team.ready, lane));
    leave_sums(stats, lane, warp);
    smem_.team.ready.wait(0);
    add_up(rO, lane, warp);
  }

 private:
  using PieceWork<Shared>::params_;
  using PieceWork<Shared>::smem_;
  using PieceWork<Shared>::me_;

  // To the producer warp that tells of them (few_heads_team_weights.cuh).
  template <class Stats>
  __device__ __forceinline__ void leave_sums(Stats const& stats, int lane, int warp) {
    using LaneHeads = typename TeamInbox<Config::kHeads>::LaneHeads;
    LaneHeads mine, reference;
    CUTE_UNROLL
    for (int h = 0; h < Stats::kMine; ++h) {
      float const sum = stats.sum[h] + __shfl_xor_sync(~0u, stats.sum[h], 16),
                  weight = stats.weight[h] + __shfl_xor_sync(~0u, stats.weight[h], 16);
      mine.of[h] = lane < 16 ? sum : weight;
      reference.of[h] = stats.reference[h];
    }
    smem_.sums_left(me_)[warp][lane / 16][lane % 16] = mine;
    if (warp == 0 && lane < 4) smem_.references_left(me_)[lane] = reference;
    __syncwarp();
    if (lane == 0) smem_.team.summed[me_].arrive();
  }

  // As a team of the kSize-th size, if it is one.
  template <int kSize = 0, class TensorO>
  __device__ __forceinline__ void add_up(TensorO const& rO, int lane, int warp) {
    constexpr int kCtas = kFewHeadsTeams[kSize];
    if constexpr (kFewHeadsTeams[kSize + 1] > 1)
      if (params_.team != kCtas) return add_up<kSize + 1>(rO, lane, warp);
    TeamSum<Config, Shared, kCtas> sum(smem_, me_, lane, warp);
    sum.send(rO);
    sum.finish(params_, this->tile().batch, this->tile().token);
  }
};

// The key blocks of both consumers by turns, as a producer warp walks over them.
class TeamWalk {
 public:
  __device__ __forceinline__ explicit TeamWalk(TeamPiece const (&pieces)[2])
      : pieces_(pieces), runs_{pieces[1].runs[0], pieces[0].runs[0]} {}

  // What the next block is, and this thread's index in it.
  template <class Thread>
  __device__ __forceinline__ uint32_t take(DecodeParams const&, Thread const& self, int& index) {
    for (int i = 0; i < 2; ++i) {
      KeyRun const other = runs_[1];
      runs_[1] = runs_[0];
      runs_[0] = other;
      turn_ ^= 1;
      if (runs_[0].blocks == 0 && runs_[0].selection == 0) runs_[0] = pieces_[turn_].runs[1];
      if (runs_[0].blocks == 0) continue;
      index = load_index(runs_[0], self);
      uint32_t const kind = BlockKind::of(runs_[0], turn_);
      runs_[0].pass();
      return kind;
    }
    index = -1;
    return 0;
  }

 private:
  TeamPiece const (&pieces_)[2];
  KeyRun runs_[2];  // the latest one's, and the other's
  int turn_ = 1;    // whose the latest is
};

}  // namespace dsa::sm90::decode_few_heads
