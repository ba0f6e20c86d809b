// The thread that issues all products of a worker.
#pragma once

#include "config.h"
#include "work.h"

namespace dsa::sm100::decode {

template <class Config>
struct Products {
  static constexpr int kCtas = Config::kCtas;

  DecodeParams const& params;
  typename Config::SharedStorage& smem;
  uint32_t const tmem;
  RingPlace<Config::kQStages> q;
  int tail;  // the stage of q that holds a tile's last columns
  RingPlace<Config::kKeyStages> key;
  // Of the next P V: a CTA alone reads values where the keys are.
  RingPlace<Config::kPair ? Config::kValueStages : Config::kKeyStages> value;
  RingPlace<2> s;
  RingPlace<1> p;

  __device__ __forceinline__ Products(DecodeParams const& params, typename Config::SharedStorage& smem)
      : params(params), smem(smem), tmem(smem.tmem) {}

  // Within a tile, Q K^T runs a block ahead of P V.
  __device__ __forceinline__ void run() {
    TileWalk walk(params, worker<Config>(), workers<Config>());
    for (DecodeTile tile; walk.next(tile);) {
      take_q();
#pragma unroll 1
      for (int n = 0; n < tile.blocks; ++n) {
        scores(n + 1 == tile.blocks);
        if (n > 0) values(n > 1);
      }
      values(tile.blocks > 1);
    }
  }

 private:
  // The tile before is scored: its last P V, which has been issued, waited for that.
  __device__ __forceinline__ void take_q() {
    copy_q<0>();
    copy_q<Config::kQTiles>();
    smem.q_full[q.stage].wait(q.phase);
    tail = q.stage;
    q.advance();
  }

  template <int kFirst>
  __device__ __forceinline__ void copy_q() {
    smem.q_full[q.stage].wait(q.phase);
    copy_q_to_tmem<kCtas, kFirst, Config::kQTiles>(tmem, smem.q[q.stage]);
    commit_products<kCtas>(smem.q_empty[q.stage]);
    q.advance();
  }

  // Scores of two blocks ago have been read: P V of that block, which has been issued, waited for p_full.
  __device__ __forceinline__ void scores(bool last_of_tile) {
    wait_for_operands<kCtas>(smem.key_full[key.stage], key.phase);
    add_scores<kCtas, Config::kOwnKeys, 0, Config::kTiles>(tmem, tmem + kTmemS + s.stage * kTmemSColumns, smem.q[tail],
                                                           smem.key[key.stage], false);
    if constexpr (Config::kPair) commit_products<kCtas>(smem.key_empty[key.stage]);
    commit_products<kCtas>(smem.s_full[s.stage]);
    if (last_of_tile) commit_products<kCtas>(smem.q_empty[tail]);
    key.advance();
    s.advance();
  }

  __device__ __forceinline__ void values(bool accumulate) {
    bf16* tiles;
    if constexpr (Config::kPair)
      tiles = smem.value[value.stage];
    else
      tiles = smem.key[value.stage];
    smem.p_full.wait(p.phase);
    after_tmem_handover();
    CUTE_UNROLL
    for (int half = 0; half < 2; ++half)
      add_values<kCtas>(tmem + kTmemO + half * kHalfV / 2, smem.p,
                        tiles + half * (Config::kOwnValueTiles / 2) * kTileElements, accumulate);
    if constexpr (Config::kPair)
      commit_products<kCtas>(smem.value_empty[value.stage]);
    else
      commit_products<kCtas>(smem.key_empty[value.stage]);
    commit_products<kCtas>(smem.o_full);
    value.advance();
    p.advance();
  }
};

}  // namespace dsa::sm100::decode
