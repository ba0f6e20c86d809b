// The two loader warps: the left half of the columns, and the rest; each with a part of Q.
#pragma once

#include "config.h"
#include "sparse_mla_prefill/sm100/loader.cuh"

namespace dsa::sm100::prefill_heads64 {

template <class Config>
struct LeftLoader : Loader<1> {
  typename Config::SharedStorage& smem;
  RingPlace<Config::kLeftStages> place;

  __device__ __forceinline__ LeftLoader(KernelParams const& params, TensorMaps const& maps,
                                        typename Config::SharedStorage& smem)
      : Loader(params, maps, 0), smem(smem) {}

  __device__ __forceinline__ void run() {
    for_each_block(
        [&](Tile const& tile) {
          begin(smem.left_full[place.stage], smem.left_empty[place.stage], place.phase, kHalfTiles * kTileBytes);
          load_q<0, kHalfTiles>(tile, smem.left_full[place.stage], smem.left[place.stage]);
          place.advance();
        },
        [&](Rows const& rows) {
          begin(smem.left_full[place.stage], smem.left_empty[place.stage], place.phase, kHalfTiles * kTileBytes);
          gather_keys<kHalfTiles>(rows, smem.left_full[place.stage], smem.left[place.stage], 0);
          place.advance();
        });
    drain(smem.left_empty, place);
  }
};

template <class Config>
struct RightLoader : Loader<1> {
  typename Config::SharedStorage& smem;
  RingPlace<Config::kRightStages> place;
  RingPlace<Config::kRopeStages> rope;
  RingPlace<1> q;

  __device__ __forceinline__ RightLoader(KernelParams const& params, TensorMaps const& maps,
                                         typename Config::SharedStorage& smem)
      : Loader(params, maps, 0), smem(smem) {}

  __device__ __forceinline__ void run() {
    for_each_block([&](Tile const& tile) { begin_tile(tile); }, [&](Rows const& rows) { gather(rows); });
    drain(smem.right_empty, place);
    drain(smem.q_empty, q);
  }

 private:
  __device__ __forceinline__ void begin_tile(Tile const& tile) {
    constexpr int kCount = kTmemQTiles - kHalfTiles;
    begin(smem.right_full[place.stage], smem.right_empty[place.stage], place.phase, kCount * kTileBytes);
    load_q<kHalfTiles, kCount>(tile, smem.right_full[place.stage], smem.right[place.stage]);
    place.advance();
    begin(smem.q_full, smem.q_empty[0], q.phase, Config::kTailTiles * kTileBytes);
    load_q<kTmemQTiles, Config::kTailTiles>(tile, smem.q_full, smem.q_tail);
    q.advance();
  }

  __device__ __forceinline__ void gather(Rows const& rows) {
    if constexpr (Config::kHasRope) {
      announce(smem.rope_full[rope.stage], kTileBytes);
      gather_keys<1>(rows, smem.rope_full[rope.stage], smem.rope[rope.stage], kDV);
      rope.advance();
    }
    begin(smem.right_full[place.stage], smem.right_empty[place.stage], place.phase, kHalfTiles * kTileBytes);
    gather_keys<kHalfTiles>(rows, smem.right_full[place.stage], smem.right[place.stage], kDV / 2);
    place.advance();
  }
};

}  // namespace dsa::sm100::prefill_heads64
