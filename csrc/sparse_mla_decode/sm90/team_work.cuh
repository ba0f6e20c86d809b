// What a CTA of a team (team.cuh) works on: one tile, and an equal share of its query's keys.
#pragma once

#include "rows.cuh"
#include "team.cuh"

namespace dsa::sm90 {

struct TeamShare {
  int batch, token, head;
  int pairs;              // of key blocks, the same for all of the team, so that the last ones may have no keys
  int first_block;        // among its query's
  int length[2];          // the query's tokens of either cache
  int32_t const* idx[2];  // and its indices
};

template <class Config, class Shared>
class TeamWork {
 public:
  using Params = DecodeParams;

  static constexpr bool kTeam = true;
  using Sum = TeamSum<Config, Shared>;

  __device__ __forceinline__ TeamWork(Params const&, TeamShare const& share) : share_(share) {}

  // Meets all threads of the CTA. All but lengths is worked out before the kernel before has ended, and with full
  // lengths, too, so that the code is there when they can be read. One warp waits for that end, from the beginning: it
  // takes some 2000 cycles to learn of it, even if it is long over.
  static __device__ __forceinline__ TeamShare share_after_grid_before(Params const& p) {
    if (threadIdx.x / 32 == kWaitingWarp) wait_for_grid_before();
    auto const [query, head, column_cta] = p.place();
    bool const full = p.keys[0].length == nullptr && p.keys[1].length == nullptr;
    TeamShare s;
    s.head = head;
    p.tokens(s.batch, s.token, query);
    CUTE_UNROLL
    for (int i = 0; i < 2; ++i) {
      s.length[i] = p.keys[i].topk;
      s.idx[i] = p.keys[i].idx + (s.batch * p.keys[i].idx_stride_batch + s.token * p.keys[i].idx_stride_token);
    }
#pragma unroll 1
    for (bool before = true;; before = false) {
      s.pairs = p.teams.div(p.shape.units(s.length[0], s.length[1]) + p.team - 1);
      s.first_block = int(cluster_rank()) * s.pairs * 2;
      if (before) __syncthreads();
      if (!before || full) return s;
      CUTE_UNROLL
      for (int i = 0; i < 2; ++i) s.length[i] = Params::length(p.keys[i], s.batch, s.token);
    }
  }

  __device__ __forceinline__ bool done() const { return done_; }
  __device__ __forceinline__ void advance() { done_ = true; }
  __device__ __forceinline__ TeamShare const& tile() const { return share_; }
  __device__ __forceinline__ int pairs() const { return share_.pairs; }

 private:
  static constexpr int kWaitingWarp = 2;

  TeamShare const share_;
  bool done_ = false;
};

// Its key blocks, as a producer warp walks over them: a run in each cache.
class TeamWalk {
 public:
  __device__ __forceinline__ TeamWalk(TeamShare const& share, KeyRun (&second)[kProducerWarps]) : second_(second) {
    int const first_blocks = DecodeShape::blocks_of(share.length[0]), begin = share.first_block,
              end = begin + share.pairs * 2, first_end = min(end, first_blocks);
    run_ = {share.idx[0] + begin * kBlockK, share.length[0] - begin * kBlockK, max(first_end - begin, 0), 0};
    int const from = max(begin - first_blocks, 0);  // in the second cache
    if (threadIdx.x % 32 == 0)
      second[threadIdx.x / 32 % kProducerWarps] = {share.idx[1] + from * kBlockK, share.length[1] - from * kBlockK, end - max(begin, first_blocks), 1};
    __syncwarp();
  }

  // What the next block is, and this thread's index in it.
  __device__ __forceinline__ uint32_t take(DecodeParams const&, Lane const& self, int& index) {
    if (run_.blocks <= 0 && run_.selection == 0) run_ = second_[self.warp()];
    index = run_.blocks > 0 ? load_index(run_, self) : -1;
    if (run_.blocks <= 0) return 0;
    uint32_t const kind = BlockKind::of(run_, 0);
    run_.pass();
    return kind;
  }

 private:
  KeyRun (&second_)[kProducerWarps];  // in shared memory, to save registers
  KeyRun run_;
};

}  // namespace dsa::sm90
