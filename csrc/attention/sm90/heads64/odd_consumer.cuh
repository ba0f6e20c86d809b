// The odd consumer: scores of key blocks 2j+1, values of the right 256 columns. It also writes lse and max_logits.
#pragma once

#include "consumer.cuh"

namespace dsa::sm90::heads64 {

template <class Config, class Work>
struct OddConsumer : Consumer<Config, Work> {
  using Base = Consumer<Config, Work>;
  using Base::Base, Base::lane, Base::params, Base::phase, Base::rO, Base::rP, Base::rS, Base::smem, Base::stats,
      Base::warp;

  __device__ __forceinline__ void run(Work work) {
    if constexpr (Work::kTeam)
      run_team(work.blocks());
    else
      run_tiles(work);
  }

 private:
  __device__ __forceinline__ void run_tiles(Work& work) {
    for (; !work.done(); work.advance()) {
      auto const tile = work.tile();
      int const pairs = work.pairs();
      this->begin_tile();
      this->wait_q();
#pragma unroll 1
      for (int pair = 1; pair <= pairs; ++pair) {
        add_pair(false, true);
        this->wait_products();
        if (pair < pairs) this->release(1, kRight);
      }
      combine_stats(stats, smem, kOdd, lane, warp);
      write_tile<Work>(params, this->maps.out, tile, stats, rO, smem, kOdd, lane, warp);
      this->release_staged(kRight);
    }
  }

  // A team's one tile, whose last pair may have no odd block.
  __device__ __forceinline__ void run_team(int left) {
    typename Work::Sum const sum(params, smem, kOdd, lane, warp);
    this->begin_tile();
    this->wait_q();
    bool first = true;
#pragma unroll 1
    for (; left >= 2; left -= 2) {
      add_pair(first, left > 2);
      first = false;
      // (Beside the products, and for that in the loop: behind it ptxas would serialise them.)
      if (left == 2) sum.tell(stats);
      this->wait_products();
      if (left > 3) this->release(1, kRight);
    }
    if (left == 1) {
      add_even_block();
      sum.tell(stats);
      this->wait_products();
    }
  }

  // The last one, alone. Values are in flight on return.
  __device__ __forceinline__ void add_even_block() {
    cutlass::arch::NamedBarrier::arrive_and_wait(256, kEvenPReady);
    cutlass::arch::fence_view_async_shared();
    float factor[2];
    if (stats.adopt(smem.reference[kEven], factor, lane, warp)) rescale(rO, factor);
    this->issue_other_values(smem.even_p(), 0, kRight);
    stats.publish(smem.reference[kOdd], lane, warp);
    cutlass::arch::NamedBarrier::arrive(256, kOddPReady);
  }

  // Values are in flight on return. o_is_zero: as of the even consumer; more: whether the even key buffer is filled
  // again.
  __device__ __forceinline__ void add_pair(bool o_is_zero, bool more) {
    this->wait_keys(1, kLeft);
    this->template issue_scores<kLeft>(1);
    uint64_t const valid = smem.valid[1];
    this->wait_keys(1, kRight);
    this->template issue_scores<kRight>(1);
    cutlass::arch::NamedBarrier::arrive_and_wait(256, kEvenPReady);
    cutlass::arch::fence_view_async_shared();  // of the even consumer's probabilities, and of its block's copies
    this->wait_products();

    float factor[2];
    if (stats.adopt(smem.reference[kEven], factor, lane, warp) && !o_is_zero) rescale(rO, factor);
    this->issue_other_values(smem.even_p(), 0, kRight);
    mask_scores(rS, valid, lane);
    bool const moved = stats.meet(rS, this->scale_log2, factor);
    stats.exponentiate(rS, rP, this->scale_log2);
    if constexpr (Config::kKeysAreLate) release_even_block(more);
    if constexpr (Config::kOddPOverRope) cutlass::arch::NamedBarrier::arrive_and_wait(128, kWarpsMeet + kOdd);
    store_rows(recast<uint32_t const>(rP), smem.odd_p(), lane, warp);
    stats.publish(smem.reference[kOdd], lane, warp);
    cutlass::arch::fence_view_async_shared();
    if constexpr (!Config::kKeysAreLate) release_even_block(more);
    cutlass::arch::NamedBarrier::arrive(256, kOddPReady);
    if (moved) rescale(rO, factor);
    this->issue_own_values(1, kRight);
    phase ^= 1;
  }

  __device__ __forceinline__ void release_even_block(bool more) {
    this->wait_products();
    if (more) this->release(0, kRight);
  }
};

}  // namespace dsa::sm90::heads64
