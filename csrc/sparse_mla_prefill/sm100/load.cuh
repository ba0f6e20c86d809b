// The two loader warps of a CTA: keys (with Q), and values. Each lane issues gathers of its own.
#pragma once

#include "config.h"
#include "sparse_mla_prefill/sm100/work.h"

namespace dsa::sm100::prefill {

template <class Config>
struct Loader {
  using Shared = typename Config::SharedStorage;

  KernelParams const& params;
  TensorMaps const& maps;
  Shared& smem;
  uint32_t const rank;
  int const lane;

  __device__ __forceinline__ Loader(KernelParams const& params, TensorMaps const& maps, Shared& smem, uint32_t rank)
      : params(params), maps(maps), smem(smem), rank(rank), lane(threadIdx.x % 32) {}

  // Rows of the matrix of all keys that a block's places `lane` and `lane + 32` name; one beyond the last, which reads
  // as zero, for those that do not count.
  struct Rows {
    int first, second;
  };
  __device__ __forceinline__ Rows rows_of(Tile const& tile, TileKeys const& keys, int block) const {
    uint32_t const place = uint32_t(block) * kBlockK + lane;
    return {matrix_row(tile, keys.row(place)), matrix_row(tile, keys.row(place + kOwnKeys))};
  }
  __device__ __forceinline__ int matrix_row(Tile const& tile, int row) const {
    return row < 0 ? params.kv_rows : tile.batch * params.batch_rows + row;
  }
  // Rows `quad * 4` and up of those that the lanes hold.
  static __device__ __forceinline__ int4 four_rows(int row, int quad) {
    return make_int4(__shfl_sync(~0u, row, quad * 4), __shfl_sync(~0u, row, quad * 4 + 1),
                     __shfl_sync(~0u, row, quad * 4 + 2), __shfl_sync(~0u, row, quad * 4 + 3));
  }

  // The loader's turn to fill a buffer: it is empty, and the leader knows what comes. Both CTAs' bytes are alike.
  __device__ __forceinline__ void begin(Barrier& full, Barrier& empty, uint32_t phase, uint32_t bytes) const {
    empty.wait(phase ^ 1);
    if (rank == kLeader && lane == 0) full.arrive_and_expect_tx(2 * bytes);
  }
};

template <class Config>
struct KeyLoader : Loader<Config> {
  using Base = Loader<Config>;
  using Base::lane, Base::maps, Base::params, Base::rank, Base::smem;

  RingPlace<kKeyStages> place;
  uint32_t q_phase = 0;

  using Base::Base;

  __device__ __forceinline__ void run() {
    uint32_t const pairs = gridDim.x / 2;
    for (uint64_t i = blockIdx.x / 2; i < params.tiles; i += pairs) {
      Tile const tile = params.tile(uint32_t(i));
      TileKeys const keys(params, tile);
      int const blocks = keys.blocks();
      auto next = this->rows_of(tile, keys, 0);
      load_q(tile);
#pragma unroll 1
      for (int block = 1; block <= blocks; ++block) {
        auto const rows = next;
        next = this->rows_of(tile, keys, block);  // places beyond the last do not count
        gather(rank == 0 ? rows.first : rows.second);
      }
    }
    // Products may still signal this CTA's barriers: it must not end before.
    for (int n = 0; n < kKeyStages; ++n) {
      smem.key_empty[place.stage].wait(place.phase ^ 1);
      place.advance();
    }
    smem.q_empty.wait(q_phase ^ 1);
  }

 private:
  __device__ __forceinline__ void load_q(Tile const& tile) {
    load_q_part<0, Config::kFirstPartTiles>(tile);
    load_q_part<Config::kFirstPartTiles, Config::kSecondPartTiles>(tile);
    this->begin(smem.q_full, smem.q_empty, q_phase, Config::kTailBytes);
    q_phase ^= 1;
    load_q_tiles<kTmemQTiles, Config::kTailTiles>(tile, smem.q_full, smem.q_tail);
  }

  template <int kFirst, int kCount>
  __device__ __forceinline__ void load_q_part(Tile const& tile) {
    this->begin(smem.key_full[place.stage], smem.key_empty[place.stage], place.phase, kCount * Config::kQTileBytes);
    load_q_tiles<kFirst, kCount>(tile, smem.key_full[place.stage], smem.key[place.stage]);
    place.advance();
  }

  // Heads past the last read as zero.
  template <int kFirst, int kCount>
  __device__ __forceinline__ void load_q_tiles(Tile const& tile, Barrier& full, bf16* to) const {
    if (lane < kCount)
      SM100_TMA_2SM_LOAD_4D::copy(&maps.q, reinterpret_cast<uint64_t*>(&full),
                                  static_cast<uint64_t>(TMA::CacheHintSm100::EVICT_FIRST), to + lane * kTileElements,
                                  (kFirst + lane) * kTileCols, tile.head + rank * kBlockH, tile.token, tile.batch);
  }

  // Own keys, all columns: eight lanes, with four rows each, take every fourth tile.
  __device__ __forceinline__ void gather(int row) {
    constexpr int kQuads = kOwnKeys / 4, kLanesATile = 32 / kQuads;
    int4 const rows = Base::four_rows(row, lane % kQuads);
    Barrier& full = smem.key_full[place.stage];
    this->begin(full, smem.key_empty[place.stage], place.phase, Config::kKeyBytes);
    bf16* const to = smem.key[place.stage] + lane % kQuads * 4 * kTileCols;
    CUTE_UNROLL
    for (int step = 0; step < (Config::kTiles + kLanesATile - 1) / kLanesATile; ++step) {
      int const tile = step * kLanesATile + lane / kQuads;
      if (tile < Config::kTiles) gather_rows(maps.kv, full, to + tile * kKeyTileElements, tile * kTileCols, rows);
    }
    place.advance();
  }
};

template <class Config>
struct ValueLoader : Loader<Config> {
  using Base = Loader<Config>;
  using Base::lane, Base::maps, Base::params, Base::rank, Base::smem;

  RingPlace<kValueStages> place;

  using Base::Base;

  __device__ __forceinline__ void run() {
    uint32_t const pairs = gridDim.x / 2;
    for (uint64_t i = blockIdx.x / 2; i < params.tiles; i += pairs) {
      Tile const tile = params.tile(uint32_t(i));
      TileKeys const keys(params, tile);
      int const blocks = keys.blocks();
      auto next = this->rows_of(tile, keys, 0);
#pragma unroll 1
      for (int block = 1; block <= blocks; ++block) {
        auto const rows = next;
        next = this->rows_of(tile, keys, block);
        gather(rows);
      }
    }
    for (int n = 0; n < kValueStages; ++n) {
      smem.value_empty[place.stage].wait(place.phase ^ 1);
      place.advance();
    }
  }

 private:
  // All keys, own value columns: sixteen lanes, with four rows each, take every second tile.
  __device__ __forceinline__ void gather(typename Base::Rows const& rows) {
    constexpr int kQuads = kBlockK / 4, kLanesATile = 32 / kQuads;
    int const quad = lane % kQuads;
    int4 const low = Base::four_rows(rows.first, quad % (kQuads / 2));
    int4 const high = Base::four_rows(rows.second, quad % (kQuads / 2));
    int4 const four = quad < kQuads / 2 ? low : high;
    Barrier& full = smem.value_full[place.stage];
    this->begin(full, smem.value_empty[place.stage], place.phase, Config::kValueBytes);
    bf16* const to = smem.value[place.stage] + quad * 4 * kTileCols;
    CUTE_UNROLL
    for (int step = 0; step < kValueTiles / kLanesATile; ++step) {
      int const tile = step * kLanesATile + lane / kQuads;
      gather_rows(maps.kv, full, to + tile * kTileElements, int(rank) * kHalfV + tile * kTileCols, four);
    }
    place.advance();
  }
};

}  // namespace dsa::sm100::prefill
