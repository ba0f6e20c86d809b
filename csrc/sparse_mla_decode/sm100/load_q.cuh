// The warp that loads Q.
#pragma once

#include "arch/sm100/gather.cuh"
#include "config.h"
#include "work.h"

namespace dsa::sm100::decode {

template <class Config>
struct QLoader {
  DecodeParams const& params;
  CUtensorMap const& map;
  typename Config::SharedStorage& smem;
  int const rank, lane;
  RingPlace<Config::kQStages> place;

  __device__ __forceinline__ QLoader(DecodeParams const& params, CUtensorMap const& map,
                                     typename Config::SharedStorage& smem, uint32_t rank)
      : params(params), map(map), smem(smem), rank(int(rank)), lane(threadIdx.x % 32) {}

  __device__ __forceinline__ void run() {
    TileWalk walk(params, worker<Config>(), workers<Config>());
    for (DecodeTile tile; walk.next(tile);) {
      load<0, Config::kQTiles>(tile);
      load<Config::kQTiles, Config::kQTiles>(tile);
      load<kTmemQTiles, Config::kTailTiles>(tile);
    }
    Config::drain(smem.q_empty, place);
  }

 private:
  // Tiles of 64 heads, this CTA's. Heads past the last read as zero. (The leader knows of both CTAs' bytes: alike.)
  template <int kFirst, int kCount>
  __device__ __forceinline__ void load(DecodeTile const& tile) {
    Barrier& full = smem.q_full[place.stage];
    smem.q_empty[place.stage].wait(place.phase ^ 1);
    if (rank == kLeader && lane == 0) full.arrive_and_expect_tx(Config::kCtas * kCount * kTileBytes);
    if (lane < kCount)
      load_box<Config::kCtas>(map, full, smem.q[place.stage] + lane * kTileElements, (kFirst + lane) * kTileCols,
                              tile.head + rank * kBlockH, tile.token, tile.batch);
    place.advance();
  }
};

}  // namespace dsa::sm100::decode
