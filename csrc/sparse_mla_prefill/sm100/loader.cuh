// What the loader warps have in common: which rows to gather, and filling buffers with them and with Q.
#pragma once

#include "arch/sm100/gather.cuh"
#include "work.h"

namespace dsa::sm100 {

// kCtas: 2 in a pair, whose leader knows of both CTAs' bytes, which are alike.
template <int kCtas>
struct Loader {
  KernelParams const& params;
  TensorMaps const& maps;
  uint32_t const rank;
  int const lane;

  __device__ __forceinline__ Loader(KernelParams const& params, TensorMaps const& maps, uint32_t rank)
      : params(params), maps(maps), rank(rank), lane(threadIdx.x % 32) {}

  // Rows of the matrix of all keys that a block's places `lane` and `lane + 32` name; one beyond the last, which reads
  // as zero, for those that do not count.
  struct Rows {
    int first, second;
  };
  __device__ __forceinline__ Rows rows_of(Tile const& tile, TileKeys const& keys, int block) const {
    uint32_t const place = uint32_t(block) * kBlockK + lane;
    return {matrix_row(tile, keys.row(place)), matrix_row(tile, keys.row(place + 32))};
  }

  // Calls gather(rows) for all blocks of a tile, after begin_tile(). Indices are loaded a block ahead: they come from
  // memory, and the buffers would run empty meanwhile.
  template <class Begin, class Gather>
  __device__ __forceinline__ void for_each_block(Begin const& begin_tile, Gather const& gather) const {
    for (uint64_t i = blockIdx.x / kCtas; i < params.tiles; i += gridDim.x / kCtas) {
      Tile const tile = params.tile(uint32_t(i));
      TileKeys const keys(params, tile);
      int const blocks = keys.blocks();
      Rows next = rows_of(tile, keys, 0);
      begin_tile(tile);
#pragma unroll 1
      for (int block = 1; block <= blocks; ++block) {
        Rows const rows = next;
        next = rows_of(tile, keys, block);  // places beyond the last do not count
        gather(rows);
      }
    }
  }

  // Before a buffer is filled.
  __device__ __forceinline__ void begin(Barrier& full, Barrier& empty, uint32_t phase, uint32_t bytes) const {
    empty.wait(phase ^ 1);
    announce(full, bytes);
  }
  __device__ __forceinline__ void announce(Barrier& full, uint32_t bytes) const {
    if (rank == 0 && lane == 0) full.arrive_and_expect_tx(kCtas * bytes);
  }

  // Rows `quad * 4` and up of those that the lanes hold. A reduction, because its result is known to be the same in all
  // lanes: gathers take their rows from uniform registers, and would otherwise be issued in a loop over the lanes.
  __device__ __forceinline__ int4 four_rows(int row, int quad) const {
    auto const of_lane = [&](int l) { return int(__reduce_max_sync(~0u, lane == l ? unsigned(row) : 0u)); };
    return make_int4(of_lane(quad * 4), of_lane(quad * 4 + 1), of_lane(quad * 4 + 2), of_lane(quad * 4 + 3));
  }

  // 32 keys, kTiles tiles of columns from `column` on; tiles are kTileRows keys high.
  template <int kTiles, int kTileRows>
  __device__ __forceinline__ void gather_32_keys(int row, Barrier& full, bf16* to, int column) const {
    CUTE_UNROLL
    for (int quad = 0; quad < 8; ++quad) {
      int4 const rows = four_rows(row, quad);
      if (elect_one_sync()) {
        CUTE_UNROLL
        for (int tile = 0; tile < kTiles; ++tile)
          gather_rows<kCtas>(maps.kv, full, to + (tile * kTileRows + quad * 4) * kTileCols, column + tile * kTileCols,
                             rows);
      }
    }
  }
  template <int kTiles>
  __device__ __forceinline__ void gather_keys(Rows const& rows, Barrier& full, bf16* to, int column) const {
    gather_32_keys<kTiles, kBlockK>(rows.first, full, to, column);
    gather_32_keys<kTiles, kBlockK>(rows.second, full, to + kBlockK / 2 * kTileCols, column);
  }

  // Tiles of 64 heads of Q, from this CTA's first on. Heads past the last read as zero.
  template <int kFirst, int kCount>
  __device__ __forceinline__ void load_q(Tile const& tile, Barrier& full, bf16* to) const {
    if (lane < kCount)
      load_box<kCtas>(maps.q, full, to + lane * kTileElements, (kFirst + lane) * kTileCols,
                      tile.head + int(rank) * kBlockH, tile.token, tile.batch);
  }

  // Products may still signal this CTA's barriers: it must not end before. `place` is the next to be filled.
  template <int kStages>
  static __device__ __forceinline__ void drain(Barrier (&empty)[kStages], RingPlace<kStages> place) {
    for (int n = 0; n < kStages; ++n, place.advance()) empty[place.stage].wait(place.phase ^ 1);
  }

 private:
  __device__ __forceinline__ int matrix_row(Tile const& tile, int row) const {
    return row < 0 ? params.kv_rows : tile.batch * params.batch_rows + row;
  }
};

}  // namespace dsa::sm100
