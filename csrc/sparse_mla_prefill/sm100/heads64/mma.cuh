// The thread that issues all products.
#pragma once

#include "config.h"
#include "sparse_mla_prefill/sm100/work.h"

namespace dsa::sm100::prefill_heads64 {

template <class Config>
struct Products {
  // A ring's next buffer for Q K^T (or Q), and for P V.
  template <int kStages>
  struct Places {
    RingPlace<kStages> scores, values;
  };

  KernelParams const& params;
  typename Config::SharedStorage& smem;
  uint32_t const tmem;
  Places<Config::kLeftStages> left;
  Places<Config::kRightStages> right;
  RingPlace<Config::kRopeStages> rope;
  RingPlace<1> q;
  RingPlace<2> s;
  RingPlace<1> p;

  __device__ __forceinline__ Products(KernelParams const& params, typename Config::SharedStorage& smem)
      : params(params), smem(smem), tmem(smem.tmem) {}

  // Within a tile, Q K^T runs a block ahead of P V.
  __device__ __forceinline__ void run() {
    for (uint64_t i = blockIdx.x; i < params.tiles; i += gridDim.x) {
      int const blocks = KernelParams::blocks(params.length(params.tile(uint32_t(i))));
      take_q();
#pragma unroll 1
      for (int n = 0; n < blocks; ++n) {
        scores(n + 1 == blocks);
        if (n > 0) values(n > 1);
      }
      values(blocks > 1);
    }
  }

 private:
  // The tile before is scored: its last P V, which has been issued, waited for that.
  __device__ __forceinline__ void take_q() {
    copy_q<0, kHalfTiles>(smem.left_full, smem.left_empty, smem.left, left);
    copy_q<kHalfTiles, kTmemQTiles - kHalfTiles>(smem.right_full, smem.right_empty, smem.right, right);
    smem.q_full.wait(q.phase);
    q.advance();
  }

  template <int kFirst, int kCount, int kStages>
  __device__ __forceinline__ void copy_q(Barrier (&full)[kStages], Barrier (&empty)[kStages],
                                         bf16 (&ring)[kStages][Config::kHalfElements], Places<kStages>& places) {
    int const stage = places.scores.stage;
    full[stage].wait(places.scores.phase);
    copy_q_to_tmem<1, kFirst, kCount>(tmem, ring[stage]);
    commit_products<1>(empty[stage]);
    places.scores.advance();
    places.values.advance();  // P V has no use of it
  }

  // Scores of two blocks ago have been read: P V of that block, which has been issued, waited for p_full.
  __device__ __forceinline__ void scores(bool last_of_tile) {
    uint32_t const to = tmem + kTmemS + s.stage * kTmemSColumns;
    smem.left_full[left.scores.stage].wait(left.scores.phase);
    add_scores<1, kBlockK, 0, kHalfTiles>(tmem, to, smem.q_tail, smem.left[left.scores.stage], false);
    if constexpr (Config::kHasRope) {
      smem.rope_full[rope.stage].wait(rope.phase);
      add_scores<1, kBlockK, 2 * kHalfTiles, 1>(tmem, to, smem.q_tail, smem.rope[rope.stage], true);
      rope.advance();
    }
    smem.right_full[right.scores.stage].wait(right.scores.phase);
    add_scores<1, kBlockK, kHalfTiles, kHalfTiles>(tmem, to, smem.q_tail, smem.right[right.scores.stage], true);
    commit_products<1>(smem.s_full[s.stage]);
    if (last_of_tile) commit_products<1>(smem.q_empty[0]);
    left.scores.advance();
    right.scores.advance();
    s.advance();
  }

  __device__ __forceinline__ void values(bool accumulate) {
    smem.p_full.wait(p.phase);
    after_tmem_handover();
    add_values<1>(tmem + kTmemO, smem.p, smem.left[left.values.stage], accumulate);
    commit_products<1>(smem.left_empty[left.values.stage]);
    add_values<1>(tmem + kTmemO + kHalfV / 2, smem.p, smem.right[right.values.stage], accumulate);
    commit_products<1>(smem.right_empty[right.values.stage]);
    commit_products<1>(smem.o_full);
    left.values.advance();
    right.values.advance();
    p.advance();
  }
};

}  // namespace dsa::sm100::prefill_heads64
