// The producer warp: walks over its part of the line, and loads Q, weights, ranges of each block of queries that it
// meets, and its tiles of keys.
#pragma once

#include "config.h"
#include "indexer_logits/loaders.cuh"
#include "indexer_logits/walk.cuh"

namespace dsa::sm100::indexer_logits {

template <class Config, class Params>
struct Producer {
  static constexpr int kTokens = Config::kTokens, kHeads = Config::kHeads;
  using Shared = typename Config::SharedStorage;

  Params const& params;
  TensorMaps const& maps;
  Shared& smem;
  int const lane;
  LoaderOf<Config, typename Params::Ranges> loader;
  // All buffers start out free.
  RingPlace<Config::kUnits> unit_place{.phase = 1};
  RingPlace<Config::kStages> tile_place{.phase = 1};

  __device__ __forceinline__ Producer(Params const& params, TensorMaps const& maps, Shared& smem)
      : params(params),
        maps(maps),
        smem(smem),
        lane(threadIdx.x % 32),
        loader(params, maps.keys, smem, threadIdx.x % 32) {}

  __device__ __forceinline__ void run() {
    walk(params, start(), [&](int block, Unit const& unit) {
      loader.open(block, unit, 0);
      open_unit(block, unit);
#pragma unroll 1
      for (int t = 0; t < unit.tiles; ++t) load_tile(unit.first_key + t * kTileKeys);
    });
    end_work();
  }

 private:
  __device__ __forceinline__ Start start() const {
    if constexpr (std::is_same_v<typename Params::Ranges, PagedRanges>)
      if (are_few(params)) return start_of_few(params.blocks, Divisor(gridDim.x));
    return smem.start;
  }

  __device__ __forceinline__ void open_unit(int block, Unit const& unit) {
    IndexerQueries const& q = params.queries;
    int const buffer = unit_place.index;
    int const batch = params.blocks.batch_of(block), token = params.blocks.first_token(block);
    smem.q_empty[buffer].wait(unit_place.phase);
    Barrier& full = smem.q_full[buffer];

    // Columns beyond the block's queries are never looked at, but products of them are made.
    for (int c = lane; c < params.split.columns(); c += 32) {
      int const t = c / kHeads, h = c % kHeads;
      bool const exists = t < unit.tokens;
      int64_t const at = batch * q.weights_stride_batch + (token + t) * q.weights_stride_token;
      copy_async<4>(&smem.weight[buffer][c], q.weights + (exists ? at + h * q.weights_stride_head : 0), exists);
    }
    for (int t = lane; t < unit.tokens; t += 32) smem.range[buffer][t] = params.blocks.ranges(batch, token + t);
    if (lane == 0) smem.unit[buffer] = unit;
    __syncwarp();
    if (lane == 0) {
      full.arrive_and_expect_tx(Config::kQBytes);
      SM90_TMA_LOAD_4D::copy(&maps.q, reinterpret_cast<uint64_t*>(&full),
                             static_cast<uint64_t>(TMA::CacheHintSm90::EVICT_FIRST), smem.q[buffer], 0, 0, token,
                             batch);
    }
    arrive_after_copies(full);
    unit_place.advance();
  }

  __device__ __forceinline__ void load_tile(int key) {
    smem.empty[tile_place.index].wait(tile_place.phase);
    loader.load(tile_place.index, key);
    tile_place.advance();
  }

  // A unit without tiles tells the others. Then all buffers must come back: the CTA may not end while a commit is still
  // to arrive.
  __device__ __forceinline__ void end_work() {
    smem.q_empty[unit_place.index].wait(unit_place.phase);
    if (lane == 0) {
      smem.unit[unit_place.index] = Unit{};
      smem.q_full[unit_place.index].arrive();
    }
    smem.q_full[unit_place.index].arrive();
    for (int i = 1; i < Config::kUnits; ++i) {
      unit_place.advance();
      smem.q_empty[unit_place.index].wait(unit_place.phase);
    }
    for (int i = 0; i < Config::kStages; ++i) {
      smem.empty[tile_place.index].wait(tile_place.phase);
      tile_place.advance();
    }
  }
};

}  // namespace dsa::sm100::indexer_logits
