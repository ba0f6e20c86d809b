// The even consumer: scores of key blocks 2j, values of the left 256 columns. It also fetches each tile's Q.
#pragma once

#include "consumer.cuh"

namespace dsa::sm90::prefill_heads64 {

template <class Config>
struct EvenConsumer : Consumer<Config> {
  using Base = Consumer<Config>;
  using Base::Base, Base::lane, Base::params, Base::phase, Base::rO, Base::rP, Base::rS, Base::smem, Base::stats,
      Base::warp;

  __device__ __forceinline__ void run() {
    if (this->thread == 0) this->load_q(params.tile(blockIdx.x));
    this->wait_q();
    this->issue_scores(0);
    for (int64_t i = blockIdx.x; i < params.tiles; i += gridDim.x) {
      Tile const tile = params.tile(i);
      int const pairs = params.pairs(params.length(tile));
      bool const another_tile = i + gridDim.x < params.tiles;
      this->begin_tile();
#pragma unroll 1
      for (int pair = 1; pair <= pairs; ++pair) {
        bool const last = pair == pairs;
        add_pair();
        // All scores of the pair are done, the odd consumer's too (add_pair met it): after the last, Q may be replaced.
        if (last && another_tile && this->thread == 0) this->load_q(params.tile(i + gridDim.x));
        // The next scores queue up behind the values if their keys are here; otherwise the values' buffer goes back
        // first. The first scores of the next tile run while this one is written out.
        bool const ready = !last && smem.full[0][kLeft].test_wait(phase);
        if (!ready) release_odd_block();
        if (last && !another_tile) break;
        if (last) this->wait_q();
        this->issue_scores(0);
        if (ready) {
          warpgroup_wait<1>();
          this->release(1, kLeft);
        }
      }
      combine_stats(stats, smem, kEven, lane, warp);
      write_tile(params, tile, stats, rO, kEven, lane, warp);
    }
  }

 private:
  // Scores of block 2j are in flight on entry, values of block 2j+1 on return.
  __device__ __forceinline__ void add_pair() {
    this->wait_products();
    mask_scores(rS, smem.valid[0], lane);
    float factor[2];
    if (stats.meet(rS, this->scale_log2, factor)) stats.rescale(factor, rO);
    stats.exponentiate(rS, rP, this->scale_log2);
    if constexpr (Config::kEvenPOverRope) cutlass::arch::NamedBarrier::arrive_and_wait(128, kEvenScores);
    store_probabilities(rP, smem.even_p(), lane, warp);
    stats.publish(smem.reference[kEven], lane, warp);
    cutlass::arch::fence_view_async_shared();
    cutlass::arch::NamedBarrier::arrive(256, kEvenPReady);
    this->issue_own_values(0, kLeft);
    this->wait_products();
    this->release(0, kLeft);
    phase ^= 1;

    cutlass::arch::NamedBarrier::arrive_and_wait(256, kOddPReady);
    if (stats.adopt(smem.reference[kOdd], factor, lane, warp)) stats.rescale(factor, rO);
    this->issue_other_values(smem.odd_p(), 1, kLeft);
  }

  __device__ __forceinline__ void release_odd_block() {
    warpgroup_wait<0>();
    this->release(1, kLeft);
  }
};

}  // namespace dsa::sm90::prefill_heads64
