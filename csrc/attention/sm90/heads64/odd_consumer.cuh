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
    for (; !work.done(); work.advance()) {
      auto const tile = work.tile();
      int const pairs = work.pairs();
      this->begin_tile();
      this->wait_q();
#pragma unroll 1
      for (int pair = 1; pair <= (Work::kTeam ? pairs - 1 : pairs); ++pair) {
        add_pair();
        this->wait_products();
        if (pair < pairs) this->release(1, kRight);
      }
      if constexpr (Work::kTeam) add_pair<true>();
      combine_stats(stats, smem, kOdd, lane, warp);
      if constexpr (Work::kTeam) this->wait_products();
      write_tile<Work>(params, this->maps.out, tile, stats, rO, smem, kOdd, lane, warp);
      if constexpr (Work::kTeam) return;
      this->release_staged(kRight);
    }
  }

 private:
  // Values are in flight on return. kLast: of a team, whose key buffers are not filled again.
  template <bool kLast = false>
  __device__ __forceinline__ void add_pair() {
    this->wait_keys(1, kLeft);
    this->template issue_scores<kLeft>(1);
    uint64_t const valid = smem.valid[1];
    this->wait_keys(1, kRight);
    this->template issue_scores<kRight>(1);
    cutlass::arch::NamedBarrier::arrive_and_wait(256, kEvenPReady);
    cutlass::arch::fence_view_async_shared();  // of the even consumer's probabilities, and of its block's copies
    this->wait_products();

    float factor[2];
    if (stats.adopt(smem.reference[kEven], factor, lane, warp)) rescale(rO, factor);
    this->issue_other_values(smem.even_p(), 0, kRight);
    mask_scores(rS, valid, lane);
    bool const moved = stats.meet(rS, this->scale_log2, factor);
    stats.exponentiate(rS, rP, this->scale_log2);
    if constexpr (Config::kKeysAreLate && !kLast) release_even_block();
    store_rows(recast<uint32_t const>(rP), smem.odd_p(), lane, warp);
    stats.publish(smem.reference[kOdd], lane, warp);
    cutlass::arch::fence_view_async_shared();
    if constexpr (!Config::kKeysAreLate) release_even_block();
    cutlass::arch::NamedBarrier::arrive(256, kOddPReady);
    if constexpr (kLast) this->wait_products();
    if (moved) rescale(rO, factor);
    this->issue_own_values(1, kRight);
    phase ^= 1;
  }

  __device__ __forceinline__ void release_even_block() {
    this->wait_products();
    this->release(0, kRight);
  }
};

}  // namespace dsa::sm90::heads64
