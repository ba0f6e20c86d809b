// The even consumer: scores of key blocks 2j, values of the left 256 columns. It also fetches each tile's Q.
#pragma once

#include "consumer.cuh"

namespace dsa::sm90::heads64 {

template <class Config, class Work>
struct EvenConsumer : Consumer<Config, Work> {
  using Base = Consumer<Config, Work>;
  using Base::Base, Base::lane, Base::params, Base::phase, Base::rO, Base::rP, Base::rS, Base::smem, Base::stats,
      Base::warp;

  __device__ __forceinline__ void run(Work work) {
    if constexpr (!Work::kTeam)
      if (work.done()) return;
    if (this->thread == 0) this->load_q(work.tile());
    this->wait_q();
    issue_next_scores();
    if constexpr (Work::kTeam)
      run_team(work);
    else
      run_tiles(work);
  }

 private:
  __device__ __forceinline__ void issue_next_scores() {
    this->wait_keys(0, kLeft);
    this->template issue_scores<kLeft>(0);
    this->wait_keys(0, kRight);
    this->template issue_scores<kRight>(0);
  }

  __device__ __forceinline__ void run_tiles(Work& work) {
    for (;;) {
      auto const tile = work.tile();
      int const pairs = work.pairs();
      work.advance();
      bool const another_tile = !work.done();

      this->begin_tile();
      if (another_tile && this->thread == 0) this->prefetch_q(work.tile());
#pragma unroll 1
      for (int pair = 1; pair < pairs; ++pair) {
        add_even_block(false);
        wait_odd_probabilities();
        add_odd_block();
        // The next scores do not queue up behind this: wgmma blocks its issuer once a few are queued, and the values'
        // buffer would go back late.
        this->wait_products();
        this->release(1, kLeft);
        issue_next_scores();
      }
      add_even_block(false);
      wait_odd_probabilities();
      if (another_tile && this->thread == 0) this->load_q(work.tile());
      add_odd_block();
      this->wait_products();
      combine_stats(stats, smem, kEven, lane, warp);
      write_tile<Work>(params, this->maps.out, tile, stats, rO, smem, kEven, lane, warp);
      // The next tile's first scores run while this one is written out; after the last tile, scores of nothing.
      if (another_tile) {
        this->wait_q();
        smem.full[0][kLeft].wait(phase);
        this->wait_keys(0, kRight);  // its fence is for both halves
      }
      this->template issue_scores<kLeft>(0);
      this->template issue_scores<kRight>(0);
      this->release_staged(kLeft);
      if (!another_tile) break;
    }
    warpgroup_wait<0>();
  }

  // A team's one tile.
  __device__ __forceinline__ void run_team(Work& work) {
    int const blocks = work.blocks();
    typename Work::Sum const sum(params, smem, kEven, lane, warp);
    this->begin_tile();
#pragma unroll 1
    for (int block = 0;; block += 2) {
      bool const last = block + 2 >= blocks;
      add_even_block(block == 0);
      if (last) sum.tell(stats);
      wait_odd_probabilities();
      if (last) cutlass::arch::NamedBarrier::arrive(128 + 32, kQIsFree);
      if (block + 1 < blocks) {
        add_odd_block();
        this->wait_products();
      }
      if (last) break;
      if (block + 3 < blocks) {
        this->release(1, kLeft);
        if constexpr (Config::kOddPOverRope) this->release(1, kRight);
      }
      issue_next_scores();
    }
  }

  // Scores of the even block are in flight on entry. o_is_zero: so that it need not be rescaled (of one pair of a few
  // it counts).
  __device__ __forceinline__ void add_even_block(bool o_is_zero) {
    uint64_t const valid = smem.valid[0];  // read early: it queues behind the gather's copies
    this->wait_products();
    mask_scores(rS, valid, lane);
    float factor[2];
    if (stats.meet(rS, this->scale_log2, factor) && !o_is_zero) rescale(rO, factor);
    stats.exponentiate(rS, rP, this->scale_log2);
    if constexpr (Config::kEvenPOverRope) cutlass::arch::NamedBarrier::arrive_and_wait(128, kWarpsMeet + kEven);
    store_rows(recast<uint32_t const>(rP), smem.even_p(), lane, warp);
    stats.publish(smem.reference[kEven], lane, warp);
    cutlass::arch::NamedBarrier::arrive(256, kEvenPReady);
    this->issue_own_values(0, kLeft);
    this->wait_products();
    this->release(0, kLeft);
    phase ^= 1;
  }

  // After that nobody reads Q for this pair any more.
  __device__ __forceinline__ void wait_odd_probabilities() {
    cutlass::arch::NamedBarrier::arrive_and_wait(256, kOddPReady);
  }

  // The odd block's values are in flight on return.
  __device__ __forceinline__ void add_odd_block() {
    float factor[2];
    if (stats.adopt(smem.reference[kOdd], factor, lane, warp)) rescale(rO, factor);
    this->issue_other_values(smem.odd_p(), 1, kLeft);
  }
};

}  // namespace dsa::sm90::heads64
