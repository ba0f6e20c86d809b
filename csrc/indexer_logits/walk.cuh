// A CTA's walk over its part of the line (schedule.cuh), from one block of queries that has tiles there to the next.
#pragma once

#include "indexer_logits/start.cuh"

namespace dsa::indexer {

// By one warp: the first block from `at` on that has a tile there, before `end`.
template <class Ranges>
__device__ __forceinline__ bool find_tiles(Blocks<Ranges> const& blocks, Cut& at, Cut const& end, Tiles& tiles) {
  int const count = blocks.count(), lane = threadIdx.x % 32;
  if (!is_before(at, end) || at.block >= count) return false;
  tiles = blocks.tiles_by_warp(at.block, lane);
  if (tiles.count() > at.tile) return true;
  for (int first = at.block + 1; first < count; first += 32) {
    bool const some = first + lane < count && blocks.tiles(first + lane).count() > 0;
    if (uint32_t const with_tiles = __ballot_sync(~0u, some)) {
      at = {first + __ffs(int(with_tiles)) - 1, 0};
      tiles = blocks.tiles_by_warp(at.block, lane);
      return is_before(at, end);
    }
  }
  return false;
}

// By one warp: visit(block, unit), of one after the other.
template <class Params, class Visit>
__device__ __forceinline__ void walk(Params const& params, Start const& start, Visit visit) {
  IndexerQueries const& q = params.queries;
  auto const& blocks = params.blocks;
  Cut at = start.part.begin;
  Cut const end = start.part.end;
  int64_t left = start.part.length;
  Tiles tiles = start.tiles;
  bool known = tiles.count() > 0;
  while (left > 0 && (known || find_tiles(blocks, at, end, tiles))) {
    int count = int(min(int64_t(tiles.count() - at.tile), left));
    if (at.block == end.block) count = min(count, end.tile - at.tile);
    int const token = blocks.first_token(at.block);
    visit(at.block, Unit{blocks.batch_of(at.block) * q.out_stride_batch + token * q.out_stride_token,
                         (tiles.begin + at.tile) * kTileKeys, count, token, blocks.tokens_of(at.block), tiles.end_key});
    left -= count + kGap;  // and the next block's gap
    at = {at.block + 1, 0};
    known = false;
  }
}

}  // namespace dsa::indexer
