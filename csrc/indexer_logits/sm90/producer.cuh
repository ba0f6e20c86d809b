// The producer warp: walks over its part of the line, and loads Q, weights, ranges of each block of queries that it
// meets, and its tiles of keys.
#pragma once

#include "loaders.cuh"

namespace dsa::sm90::indexer_logits {

template <class Config, class Loader, class Params>
struct Producer {
  static constexpr int kTokens = Config::kTokens, kColumns = Config::kColumns;
  using Shared = typename Config::SharedStorage;
  using Unit = typename Config::Unit;

  Params const& params;
  TensorMaps const& maps;
  Shared& smem;
  int const lane;
  Loader loader;
  int buffer = 0, stage = 0;
  uint32_t q_phase = 1, phase = 1;  // all buffers start out free

  __device__ __forceinline__ Producer(Params const& params, TensorMaps const& maps, Shared& smem)
      : params(params),
        maps(maps),
        smem(smem),
        lane(threadIdx.x % 32),
        loader(params, maps.keys, smem, threadIdx.x % 32) {}

  __device__ __forceinline__ void run(Part const& part) {
    Cut at = part.begin;
    int64_t left = part.length;
    while (left > 0) {
      Tiles tiles;
      if (!find(at, part.end, tiles)) break;
      int count = int(min(int64_t(tiles.count() - at.tile), left));
      if (at.block == part.end.block) count = min(count, part.end.tile - at.tile);
      Unit const unit = describe(at.block, tiles.begin + at.tile, count, tiles.end_key);
      loader.open(at.block, unit);
      open_unit(at.block, unit);
      for (int t = 0; t < count; ++t) load_tile(unit.first_key + t * kTileKeys);
      left -= count + kGap;  // and the next block's gap
      at = {at.block + 1, 0};
    }
    end_work();
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

  __device__ __forceinline__ void next_buffer() {
    if (++buffer == params.rings.buffers) {
      buffer = 0;
      q_phase ^= 1;
    }
  }

  __device__ __forceinline__ void open_unit(int block, Unit const& unit) {
    IndexerQueries const& q = params.queries;
    int const slabs = params.rings.slabs, first_slab = params.rings.slab(buffer, 0);
    int const batch = params.blocks.batch_of(block), token = params.blocks.first_token(block);
    smem.q_empty[buffer].wait(q_phase);
    Barrier& full = smem.q_full[buffer];
    if (lane == 0) {
      full.expect_transaction(slabs * Config::kSlabBytes);
      for (int s = 0; s < slabs; ++s)
        SM90_TMA_LOAD_4D::copy(&maps.q, reinterpret_cast<uint64_t*>(&full),
                               static_cast<uint64_t>(TMA::CacheHintSm90::EVICT_FIRST),
                               smem.q(params.rings, first_slab + s), 0, 0, token + s * kTokens, batch);
      smem.unit[buffer] = unit;
    }

    // Columns beyond the block's queries are never looked at, but products of them are made.
    float* const weight = smem.weight[first_slab];
    for (int c = lane; c < slabs * kColumns; c += 32) {
      int const t = c / Config::kHeads, h = c % Config::kHeads;
      bool const exists = t < unit.tokens;
      int64_t const at = batch * q.weights_stride_batch + (token + t) * q.weights_stride_token;
      copy_async<4>(weight + c, q.weights + (exists ? at + h * q.weights_stride_head : 0), exists);
    }
    Range* const range = smem.range[first_slab];
    for (int t = lane; t < slabs * kTokens; t += 32)
      range[t] = t < unit.tokens ? params.blocks.ranges(batch, token + t) : Range{0, 0};
    __syncwarp();
    if (lane == 0) full.arrive();
    arrive_after_copies(full);
    next_buffer();
  }

  __device__ __forceinline__ void load_tile(int key) {
    smem.empty[stage].wait(phase);
    loader.load(stage, key);
    if (++stage == params.rings.stages) {
      stage = 0;
      phase ^= 1;
    }
  }

  // A unit without tiles tells the consumers.
  __device__ __forceinline__ void end_work() {
    smem.q_empty[buffer].wait(q_phase);
    if (lane == 0) {
      smem.unit[buffer] = Unit{};
      smem.q_full[buffer].arrive();
    }
    smem.q_full[buffer].arrive();
  }
};

}  // namespace dsa::sm90::indexer_logits
