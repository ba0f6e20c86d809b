// What a CTA of a team (team.cuh) works on: one tile, and a share of its query's key blocks, of which the last CTAs may
// have one more than the others.
#pragma once

#include "rows.cuh"
#include "team.cuh"

namespace dsa::sm90 {

struct TeamShare {
  int batch, token, head;
  int blocks;             // of keys; one past the query's last where there are fewer than CTAs
  int first_block;        // among its query's
  int length[2];          // the query's tokens of either cache
  int32_t const* idx[2];  // and its indices

  // Its key blocks in the first cache, and in the second.
  __device__ __forceinline__ KeyRun first_run() const {
    int const end = min(first_block + blocks, DecodeShape::blocks_of(length[0]));
    return {idx[0] + first_block * kBlockK, length[0] - first_block * kBlockK, max(end - first_block, 0), 0};
  }
  __device__ __forceinline__ KeyRun second_run() const {
    int const first_blocks = DecodeShape::blocks_of(length[0]), from = max(first_block - first_blocks, 0);
    return {idx[1] + from * kBlockK, length[1] - from * kBlockK, first_block + blocks - max(first_block, first_blocks),
            1};
  }
};

template <class Config, class Shared>
class TeamWork {
 public:
  using Params = DecodeParams;

  static constexpr bool kTeam = true;
  using Sum = TeamSum<Config, Shared>;

  __device__ __forceinline__ TeamWork(Params const&, TeamShare const& share) : share_(share) {}

  // What a CTA knows before the kernel before has ended: what it works on if no query has a length.
  static __device__ __forceinline__ TeamShare share(Params const& p) {
    auto const [query, head, column_cta] = p.place();
    TeamShare s;
    s.head = head;
    p.tokens(s.batch, s.token, query);
    CUTE_UNROLL
    for (int i = 0; i < 2; ++i) {
      s.length[i] = p.keys[i].topk;
      s.idx[i] = p.keys[i].idx + (s.batch * p.keys[i].idx_stride_batch + s.token * p.keys[i].idx_stride_token);
    }
    cut(p, s);
    return s;
  }
  // And after that end, if one has.
  static __device__ __forceinline__ void read_lengths(Params const& p, TeamShare& s) {
    CUTE_UNROLL
    for (int i = 0; i < 2; ++i) s.length[i] = Params::length(p.keys[i], s.batch, s.token);
    cut(p, s);
  }

  __device__ __forceinline__ TeamShare const& tile() const { return share_; }
  __device__ __forceinline__ int blocks() const { return share_.blocks; }

 private:
  static __device__ __forceinline__ void cut(Params const& p, TeamShare& s) {
    int const all = DecodeShape::blocks_of(s.length[0]) + DecodeShape::blocks_of(s.length[1]);
    int each, more;
    p.teams(each, more, all);
    int const rank = int(cluster_rank()), before = max(rank - (p.team - more), 0);  // of those that have one more
    s.blocks = each + (rank >= p.team - more);
    s.first_block = rank * each + before;
    if (s.blocks == 0) {
      s.blocks = 1;
      s.first_block = all;
    }
  }

  TeamShare const share_;
};

// Its key blocks, as a producer warp walks over them: a run in each cache.
class TeamWalk {
 public:
  __device__ __forceinline__ TeamWalk(TeamShare const& share, KeyRun (&second)[kProducerWarps]) : second_(second) {
    open(share);
  }

  // Its warp meets before it takes a block.
  __device__ __forceinline__ void open(TeamShare const& share) {
    run_ = share.first_run();
    if (threadIdx.x % 32 == 0) second_[threadIdx.x / 32 % kProducerWarps] = share.second_run();
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
