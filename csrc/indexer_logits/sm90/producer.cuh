// The producers: warps that each walk over the CTA's part of the line. One loads Q, weights and ranges of each block of
// queries that it meets, a unit; another, or two by turns, that unit's tiles of keys. The first of these finds where
// the part begins for all: four times as many warps that read the same lengths at once wait four times as long.
#pragma once

#include "config.h"
#include "indexer_logits/loaders.cuh"
#include "indexer_logits/walk.cuh"

namespace dsa::sm90::indexer_logits {

// Of Q.
template <class Config, class Params>
struct UnitProducer {
  static constexpr int kTokens = Config::kTokens, kColumns = Config::kColumns;

  Params const& params;
  CUtensorMap const& map;
  typename Config::SharedStorage& smem;
  int const lane;
  int buffer = 0;
  uint32_t phase = 1;  // all buffers start out free

  __device__ __forceinline__ void run() {
    walk(params, smem.start, [&](int block, Unit const& unit) { open(block, unit); });
    end_work();
  }

 private:
  __device__ __forceinline__ void open(int block, Unit const& unit) {
    IndexerQueries const& q = params.queries;
    int const slabs = params.rings.slabs, first_slab = params.rings.slab(buffer, 0);
    int const batch = params.blocks.batch_of(block);
    smem.q_empty[buffer].wait(phase);
    Barrier& full = smem.q_full[buffer];
    if (lane == 0) {
      full.expect_transaction(slabs * kColumns * Config::kDim);
#pragma unroll 1
      for (int s = 0; s < slabs; ++s)
        SM90_TMA_LOAD_4D::copy(&map, reinterpret_cast<uint64_t*>(&full),
                               static_cast<uint64_t>(TMA::CacheHintSm90::EVICT_FIRST),
                               smem.q(params.rings, first_slab + s), 0, 0, unit.token + s * kTokens, batch);
      smem.unit[buffer] = unit;
    }

    // Columns beyond the block's queries are never looked at, but products of them are made.
    float* const weight = smem.weight[first_slab];
    for (int c = lane; c < slabs * kColumns; c += 32) {
      int const t = c / Config::kHeads, h = c % Config::kHeads;
      bool const exists = t < unit.tokens;
      int64_t const at = batch * q.weights_stride_batch + (unit.token + t) * q.weights_stride_token;
      copy_async<4>(weight + c, q.weights + (exists ? at + h * q.weights_stride_head : 0), exists);
    }
    // What is read into registers would be waited for.
    auto const& ranges = params.blocks.ranges;
    Range* const range = smem.range[first_slab];
    for (int t = lane; t < slabs * kTokens; t += 32) {
      bool const exists = t < unit.tokens;
      if constexpr (Params::Ranges::kStarts)
        copy_async<4>(&range[t].start, ranges.start_of(batch, unit.token + t), exists);
      copy_async<4>(&range[t].end, ranges.end_of(batch, unit.token + t), exists);
    }
    if (lane == 0) full.arrive();
    arrive_after_copies(full);
    if (++buffer == params.rings.buffers) {
      buffer = 0;
      phase ^= 1;
    }
  }

  // A unit without tiles tells the consumers.
  __device__ __forceinline__ void end_work() {
    smem.q_empty[buffer].wait(phase);
    if (lane == 0) {
      smem.unit[buffer] = {};
      smem.q_full[buffer].arrive();
    }
    smem.q_full[buffer].arrive();
  }
};

// Of every kTurns'th tile of keys.
template <class Config, class Params>
struct KeyProducer {
  static constexpr int kTurns = key_producers<Config, typename Params::Ranges>;

  Params const& params;
  typename Config::SharedStorage& smem;
  int const turn, lane;
  Divisor const parts;
  LoaderOf<Config, typename Params::Ranges, kTurns> loader;

  __device__ __forceinline__ KeyProducer(Params const& params, CUtensorMap const& map,
                                         typename Config::SharedStorage& smem, int turn, int lane)
      : params(params), smem(smem), turn(turn), lane(lane), parts(gridDim.x), loader(params, map, smem, lane) {}

  // Of few requests.
  __device__ __forceinline__ void find_start() {
    if constexpr (std::is_same_v<typename Params::Ranges, PagedRanges>) {
      Start const start = start_of_few(params.blocks, parts);
      if (lane == 0) smem.start = start;
      __syncwarp();
      cutlass::arch::NamedBarrier::arrive(kOtherThreads, kStartKnown);
    }
  }

  __device__ __forceinline__ void run() {
    int stage = turn, tile = turn;
    uint32_t phase = 1;  // all stages start out free
    walk(params, smem.start, [&](int block, Unit const& unit) {
      loader.open(block, unit, tile);
#pragma unroll 1
      for (; tile < unit.tiles; tile += kTurns) {
        smem.empty[stage].wait(phase);
        loader.load(stage, unit.first_key + tile * kTileKeys);
        if ((stage += kTurns) >= params.rings.stages) {
          stage -= params.rings.stages;
          phase ^= 1;
        }
      }
      tile -= unit.tiles;
    });
  }
};

}  // namespace dsa::sm90::indexer_logits
