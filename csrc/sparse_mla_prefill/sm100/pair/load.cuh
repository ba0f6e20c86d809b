// The two loader warps of each CTA: keys (with Q), and values.
#pragma once

#include "config.h"
#include "sparse_mla_prefill/sm100/loader.cuh"

namespace dsa::sm100::prefill_pair {

template <class Config>
struct KeyLoader : Loader<2> {
  typename Config::SharedStorage& smem;
  RingPlace<kKeyStages> place;
  RingPlace<1> q_place;

  __device__ __forceinline__ KeyLoader(KernelParams const& params, TensorMaps const& maps,
                                       typename Config::SharedStorage& smem, uint32_t rank)
      : Loader(params, maps, rank), smem(smem) {}

  __device__ __forceinline__ void run() {
    for_each_block([&](Tile const& tile) { begin_tile(tile); },
                   [&](Rows const& rows) { gather(rank == 0 ? rows.first : rows.second); });
    drain(smem.key_empty, place);
    drain(smem.q_empty, q_place);
  }

 private:
  __device__ __forceinline__ void begin_tile(Tile const& tile) {
    load_q_part<0, Config::kFirstPartTiles>(tile);
    load_q_part<Config::kFirstPartTiles, Config::kSecondPartTiles>(tile);
    begin(smem.q_full, smem.q_empty[0], q_place.phase, Config::kTailTiles * kTileBytes);
    load_q<kTmemQTiles, Config::kTailTiles>(tile, smem.q_full, smem.q_tail);
    q_place.advance();
  }

  template <int kFirst, int kCount>
  __device__ __forceinline__ void load_q_part(Tile const& tile) {
    begin(smem.key_full[place.stage], smem.key_empty[place.stage], place.phase, kCount * kTileBytes);
    load_q<kFirst, kCount>(tile, smem.key_full[place.stage], smem.key[place.stage]);
    place.advance();
  }

  // Own keys, all columns.
  __device__ __forceinline__ void gather(int row) {
    Barrier& full = smem.key_full[place.stage];
    begin(full, smem.key_empty[place.stage], place.phase, Config::kKeyElements * sizeof(bf16));
    gather_32_keys<Config::kTiles, kOwnKeys>(row, full, smem.key[place.stage], 0);
    place.advance();
  }
};

template <class Config>
struct ValueLoader : Loader<2> {
  typename Config::SharedStorage& smem;
  RingPlace<kValueStages> place;

  __device__ __forceinline__ ValueLoader(KernelParams const& params, TensorMaps const& maps,
                                         typename Config::SharedStorage& smem, uint32_t rank)
      : Loader(params, maps, rank), smem(smem) {}

  __device__ __forceinline__ void run() {
    for_each_block([](Tile const&) {}, [&](Rows const& rows) { gather(rows); });
    drain(smem.value_empty, place);
  }

 private:
  __device__ __forceinline__ void gather(Rows const& rows) {
    Barrier& full = smem.value_full[place.stage];
    begin(full, smem.value_empty[place.stage], place.phase, Config::kValueElements * sizeof(bf16));
    gather_keys<kHalfTiles>(rows, full, smem.value[place.stage], int(rank) * kHalfV);
    place.advance();
  }
};

}  // namespace dsa::sm100::prefill_pair
