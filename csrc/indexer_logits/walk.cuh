// A CTA's walk over its part of the line (schedule.cuh), from one block of queries that has tiles there to the next.
#pragma once

#include "indexer_logits/schedule.cuh"

namespace dsa::indexer {

// By one warp.
template <int kWarps, class Params>
struct Walk {
  Params const& params;
  Finding const how;
  LineSums<kWarps> const& sums;
  int const lane;

  __device__ __forceinline__ Start start(Divisor const& parts) const {
    if constexpr (std::is_same_v<typename Params::Ranges, PagedRanges>)
      if (how == Finding::kFew) {
        int const count = params.blocks.count();
        if (count <= 32) return start_of_few<1>(params.blocks, blockIdx.x, parts);
        if (count <= 64) return start_of_few<2>(params.blocks, blockIdx.x, parts);
        return start_of_few<kFew / 32>(params.blocks, blockIdx.x, parts);
      }
    Start start{my_part(how, params, sums), {0, 0, 0}};
    if (!find(start.part.begin, start.part.end, start.tiles)) start.tiles = {0, 0, 0};
    return start;
  }

  // visit(block, unit), of one after the other.
  template <class Visit>
  __device__ __forceinline__ void run(Start const& start, Visit visit) const {
    Cut at = start.part.begin;
    Cut const end = start.part.end;
    int64_t left = start.part.length;
    Tiles tiles = start.tiles;
    if (tiles.count() == 0 || left == 0) return;
    do {
      int count = int(min(int64_t(tiles.count() - at.tile), left));
      if (at.block == end.block) count = min(count, end.tile - at.tile);
      visit(at.block, describe(at.block, tiles.begin + at.tile, count, tiles.end_key));
      left -= count + kGap;  // and the next block's gap
      at = {at.block + 1, 0};
    } while (left > 0 && find(at, end, tiles));
  }

 private:
  // The first block from `at` on that has tiles there, before `end`.
  __device__ __forceinline__ bool find(Cut& at, Cut const& end, Tiles& tiles) const {
    int const count = params.blocks.count();
    if (!is_before(at, end) || at.block >= count) return false;
    tiles = params.blocks.tiles_by_warp(at.block, lane);
    if (tiles.count() > at.tile) return true;
    for (int first = at.block + 1; first < count; first += 32) {
      bool const some = first + lane < count && params.blocks.tiles(first + lane).count() > 0;
      if (uint32_t const with_tiles = __ballot_sync(~0u, some)) {
        at = {first + __ffs(int(with_tiles)) - 1, 0};
        tiles = params.blocks.tiles_by_warp(at.block, lane);
        return is_before(at, end);
      }
    }
    return false;
  }

  __device__ __forceinline__ Unit describe(int block, int first_tile, int tiles, int end_key) const {
    IndexerQueries const& q = params.queries;
    int64_t const out =
        params.blocks.batch_of(block) * q.out_stride_batch + params.blocks.first_token(block) * q.out_stride_token;
    return {out, first_tile * kTileKeys, tiles, params.blocks.tokens_of(block), end_key};
  }
};

}  // namespace dsa::indexer
