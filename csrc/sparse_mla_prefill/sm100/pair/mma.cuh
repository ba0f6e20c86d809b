// The thread that issues all products of a pair.
#pragma once

#include "config.h"
#include "sparse_mla_prefill/sm100/work.h"

namespace dsa::sm100::prefill_pair {

template <class Config>
struct Products {
  KernelParams const& params;
  typename Config::SharedStorage& smem;
  uint32_t const tmem;
  RingPlace<kKeyStages> key;
  RingPlace<kValueStages> value;
  RingPlace<1> q;
  RingPlace<2> s;
  RingPlace<1> p;

  __device__ __forceinline__ Products(KernelParams const& params, typename Config::SharedStorage& smem)
      : params(params), smem(smem), tmem(smem.tmem) {}

  // Within a tile, Q K^T runs a block ahead of P V.
  __device__ __forceinline__ void run() {
    for (uint64_t i = blockIdx.x / 2; i < params.tiles; i += gridDim.x / 2) {
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
    copy_q<0, Config::kFirstPartTiles>();
    copy_q<Config::kFirstPartTiles, Config::kSecondPartTiles>();
    smem.q_full.wait(q.phase);
    q.advance();
  }

  template <int kFirst, int kCount>
  __device__ __forceinline__ void copy_q() {
    smem.key_full[key.stage].wait(key.phase);
    copy_q_to_tmem<2, kFirst, kCount>(tmem, smem.key[key.stage]);
    commit_products<2>(smem.key_empty[key.stage]);
    key.advance();
  }

  // Scores of two blocks ago have been read: P V of that block, which has been issued, waited for p_full.
  __device__ __forceinline__ void scores(bool last_of_tile) {
    smem.key_full[key.stage].wait(key.phase);
    add_scores<2, kOwnKeys, 0, Config::kTiles>(tmem, tmem + kTmemS + s.stage * kTmemSColumns, smem.q_tail,
                                               smem.key[key.stage], false);
    commit_products<2>(smem.key_empty[key.stage]);
    commit_products<2>(smem.s_full[s.stage]);
    if (last_of_tile) commit_products<2>(smem.q_empty[0]);
    key.advance();
    s.advance();
  }

  __device__ __forceinline__ void values(bool accumulate) {
    smem.value_full[value.stage].wait(value.phase);
    smem.p_full.wait(p.phase);
    after_tmem_handover();
    CUTE_UNROLL
    for (int half = 0; half < 2; ++half)
      add_values<2>(tmem + kTmemO + half * kHalfV / 2, smem.p, smem.value[value.stage] + half * 2 * kTileElements,
                    accumulate);
    commit_products<2>(smem.value_empty[value.stage]);
    commit_products<2>(smem.o_full);
    value.advance();
    p.advance();
  }
};

}  // namespace dsa::sm100::prefill_pair
