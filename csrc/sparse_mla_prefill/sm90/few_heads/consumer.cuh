// A consumer warpgroup: every other key block of a tile, with sums and outputs of its own.
#pragma once

#include <cute/arch/copy_sm90_tma.hpp>

#include "arch/sm90/mma.cuh"
#include "config.h"
#include "softmax.cuh"

namespace dsa::sm90::prefill_few_heads {

template <class Config, int me>
struct Consumer {
  static constexpr int kHeads = Config::kHeads, kMine = kHeads / 4;
  using Shared = typename Config::SharedStorage;
  using Frag = decltype(partition_fragment_C(typename Config::MmaKQ{}, Shape<_64, Int<kHeads>>{}));

  KernelParams const& params;
  TensorMaps const& maps;
  Shared& smem;
  int const thread, warp, lane;
  float const scale_log2;
  Frag rO[kValueTiles];  // of O^T, 64 value columns each
  HeadStats<kHeads> stats;
  uint32_t block = 0;    // of this consumer, since the kernel's start
  uint32_t q_phase = 0;  // of q_full and q_empty

  __device__ __forceinline__ Consumer(KernelParams const& params, TensorMaps const& maps, Shared& smem)
      : params(params),
        maps(maps),
        smem(smem),
        thread(threadIdx.x % 128),
        warp(threadIdx.x % 128 / 32),
        lane(threadIdx.x % 32),
        scale_log2(params.scale * kLog2e) {}

  __device__ __forceinline__ void run() {
    if (threadIdx.x == 0) load_q(params.tile(blockIdx.x));
    for (int64_t i = blockIdx.x; i < params.tiles; i += gridDim.x) {
      Tile const tile = params.tile(i);
      int const pairs = params.pairs(params.length(tile));
      stats.reset();
      CUTE_UNROLL
      for (int m = 0; m < kValueTiles; ++m) clear(rO[m]);
      smem.q_full.wait(q_phase);
#pragma unroll 1
      for (int pair = 1; pair < pairs; ++pair) {
        add_block(false);
        ++block;
      }
      add_block(true);
      if (threadIdx.x == 0 && i + gridDim.x < params.tiles) {
        smem.q_empty.wait(q_phase);
        load_q(params.tile(i + gridDim.x));
      }
      q_phase ^= 1;
      finish_tile(tile);
      CUTE_UNROLL
      for (int s = Config::kFirstKeptStage; s < Config::kBlockStages; ++s) release_stage(s);
      ++block;
    }
  }

 private:
  // Heads past the last read as zero.
  __device__ __forceinline__ void load_q(Tile const tile) {
    smem.q_full.arrive_and_expect_tx(Config::kQBytes);
    CUTE_UNROLL
    for (int t = 0; t < Config::kTiles; ++t)
      SM90_TMA_LOAD_4D::copy(&maps.q, reinterpret_cast<uint64_t*>(&smem.q_full),
                             static_cast<uint64_t>(TMA::CacheHintSm90::EVICT_FIRST),
                             smem.q + t * Config::kQTileElements, t * kTileCols, tile.head, tile.token, tile.batch);
  }

  __device__ __forceinline__ uint32_t stage_number(int s) const { return block * Config::kBlockStages + s; }
  // Tile t of the block's keys, or of the other consumer's block of the same number.
  __device__ __forceinline__ bf16* key_tile(int t, int consumer = me) const {
    return smem.stage[consumer][stage_number(t / Config::kStageTiles) % Config::kStages] +
           t % Config::kStageTiles * kTileElements;
  }

  __device__ __forceinline__ bf16* probabilities() const { return smem.p[me][block % 2]; }

  __device__ __forceinline__ void release_stage(int s) {
    __syncwarp();  // all lanes have read what they need
    if (lane == 0) smem.empty[me][stage_number(s) % Config::kStages].arrive();
  }

  // O^T += V^T P^T of this consumer's next block. Of the last one, some stages are kept for finish_tile.
  __device__ __forceinline__ void add_block(bool last) {
    Frag rS;
    warpgroup_fence_operand(rS);
    CUTE_UNROLL
    for (int s = 0; s < Config::kBlockStages; ++s) {
      uint32_t const n = stage_number(s);
      smem.full[me][n % Config::kStages].wait(n / Config::kStages & 1);
      cutlass::arch::fence_view_async_shared();  // the copies are generic writes
      warpgroup_arrive();
      CUTE_UNROLL
      for (int t = s * Config::kStageTiles; t < (s + 1) * Config::kStageTiles; ++t)
        mma_ss(typename Config::MmaKQ{}, make_tensor(make_smem_ptr(opaque(key_tile(t))), KeyLayout{}),
               make_tensor(make_smem_ptr(opaque(smem.q + t * Config::kQTileElements)), typename Config::HeadLayout{}),
               rS, thread, t == 0);
      warpgroup_commit_batch();
    }
    uint64_t const valid = smem.valid[me][block % 2];
    warpgroup_wait<0>();
    warpgroup_fence_operand(rS);
    if (last && lane == 0) smem.q_empty.arrive();

    mask_scores(rS, valid, lane, warp);
    auto packed = make_tensor<uint32_t>(Int<size(Frag{}) / 2>{});
    stats.exponentiate(rS, packed, scale_log2);
    store_transposed(packed, probabilities(), lane, warp);
    cutlass::arch::fence_view_async_shared();
    bool const exceeds = __any_sync(~0u, stats.exceeds(rS, scale_log2));
    if (lane == 0) smem.exceeds[me][block % 2][warp] = exceeds;
    cutlass::arch::NamedBarrier::arrive_and_wait(128, kBlock + me);
    // Neither rescales O as a rule (attention/softmax_math.cuh).
    if (reinterpret_cast<uint32_t const&>(smem.exceeds[me][block % 2]) != 0) move_references(rS);

    CUTE_UNROLL
    for (int m = 0; m < kValueTiles; ++m) warpgroup_fence_operand(rO[m]);
    warpgroup_arrive();
    CUTE_UNROLL
    for (int t = 0; t < Config::kTiles; ++t) {
      if (t < kValueTiles)
        mma_ss(typename Config::MmaVP{}, make_tensor(make_smem_ptr(opaque(key_tile(t))), ValueLayout{}),
               make_tensor(make_smem_ptr(opaque(probabilities())), typename Config::HeadLayout{}), rO[t], thread,
               false);
      if ((t + 1) % Config::kStageTiles == 0) warpgroup_commit_batch();
    }
    stats.add(rS, scale_log2);  // while the products run
    for_each(make_seq<Config::kBlockStages>{}, [&](auto s) {
      warpgroup_wait<Config::kBlockStages - 1 - s>();
      if (!last || s < Config::kFirstKeptStage) release_stage(s);
    });
    CUTE_UNROLL
    for (int m = 0; m < kValueTiles; ++m) warpgroup_fence_operand(rO[m]);
  }

  // Some head's scores exceed its reference: the block's maxima over all warps, new references, new probabilities.
  __device__ __forceinline__ void move_references(Frag const& rS) {
    float block_top[kMine], factor[kMine];
    CUTE_UNROLL
    for (int h = 0; h < kMine; ++h) block_top[h] = negative_infinity();
    CUTE_UNROLL
    for (int i = 0; i < size(rS); ++i) block_top[fragment_head(i)] = fmaxf(block_top[fragment_head(i)], rS(i));
    auto const larger = [](float a, float b) { return fmaxf(a, b); };
    reduce_over_keys(block_top, larger);
    if (lane < 4) put_heads(smem.top[me][warp], block_top, lane);
    cutlass::arch::NamedBarrier::arrive_and_wait(128, kBlock + me);
    CUTE_UNROLL
    for (int w = 0; w < 4; ++w) {
      float theirs[kMine];
      get_heads(smem.top[me][w], theirs, lane);
      CUTE_UNROLL
      for (int h = 0; h < kMine; ++h) block_top[h] = fmaxf(block_top[h], theirs[h]);
    }
    stats.move(block_top, scale_log2, factor);
    CUTE_UNROLL
    for (int m = 0; m < kValueTiles; ++m) {
      CUTE_UNROLL
      for (int i = 0; i < size(rO[m]); ++i) rO[m](i) *= factor[fragment_head(i)];
    }
    auto packed = make_tensor<uint32_t>(Int<size(Frag{}) / 2>{});
    stats.exponentiate(rS, packed, scale_log2);
    store_transposed(packed, probabilities(), lane, warp);
    cutlass::arch::fence_view_async_shared();
    cutlass::arch::NamedBarrier::arrive_and_wait(128, kBlock + me);
  }

  // The consumers add up: each writes half of the value columns, after the other has handed over its share of them.
  // Both hand over, and stage their output, in the last tiles of their last block of keys.
  __device__ __forceinline__ void finish_tile(Tile const tile) {
    constexpr int kHalf = kValueTiles / 2, first = me * kHalf, other_first = kHalf - first;
    auto const plus = [](float a, float b) { return a + b; };
    auto const larger = [](float a, float b) { return fmaxf(a, b); };
    reduce_over_keys(stats.sum, plus);
    reduce_over_keys(stats.top, larger);
    if (lane < 4) {
      put_heads(smem.sum[me][warp], stats.sum, lane);
      put_heads(smem.top[me][warp], stats.top, lane);
      if (warp == 0) put_heads(smem.reference[me], stats.reference, lane);
    }
    cutlass::arch::NamedBarrier::arrive_and_wait(128, kBlock + me);  // all warps are done with the keys
    CUTE_UNROLL
    for (int m = 0; m < kHalf; ++m) {
      auto* const share = reinterpret_cast<float2*>(share_tile(m, me)) + thread;
      CUTE_UNROLL
      for (int i = 0; i < size(rO[m]); i += 2)
        share[i / 2 * 128] = make_float2(rO[other_first + m](i), rO[other_first + m](i + 1));
    }
    cutlass::arch::NamedBarrier::arrive_and_wait(256, kExchange);

    float mine[kMine], other[kMine];
    output_factors(tile, mine, other);
    CUTE_UNROLL
    for (int m = 0; m < kHalf; ++m) {
      int const v = first + m;
      auto const* const share = reinterpret_cast<float2 const*>(share_tile(m, me ^ 1)) + thread;
      auto packed = make_tensor<uint32_t>(Int<size(Frag{}) / 2>{});
      CUTE_UNROLL
      for (int i = 0; i < size(rO[m]); i += 2) {
        float2 const theirs = share[i / 2 * 128];
        int const h = fragment_head(i);
        packed(i / 2) =
            pack_bf16(rO[v](i) * mine[h] + theirs.x * other[h], rO[v](i + 1) * mine[h + 1] + theirs.y * other[h + 1]);
      }
      store_transposed(packed, out_tile(m), lane, warp);
    }
    cutlass::arch::fence_view_async_shared();
    cutlass::arch::NamedBarrier::arrive_and_wait(256, kExchange);
    if (lane == 0) {  // heads past the last are not written
      int const v = first + warp;
      SM90_TMA_STORE_4D::copy(&maps.out, out_tile(warp), v * kTileCols, tile.head, tile.token, tile.batch);
      tma_store_arrive();
      tma_store_wait<0>();  // the stage has been read
    }
  }

  // Where consumer c hands over the m-th of the other's value tiles, and where this one's m-th is staged.
  __device__ __forceinline__ char* share_tile(int m, int c) const {
    int const byte = m * Config::kShareBytes;
    return reinterpret_cast<char*>(key_tile(Config::kFirstShareTile + byte / Config::kTileBytes, c)) +
           byte % Config::kTileBytes;
  }
  __device__ __forceinline__ bf16* out_tile(int m) const {
    int const element = m * Config::kQTileElements;
    return key_tile(Config::kFirstOutTile + element / kTileElements) + element % kTileElements;
  }

  // What this consumer's and the other's O are multiplied by. Writes lse and max_logits.
  __device__ __forceinline__ void output_factors(Tile const tile, float (&mine)[kMine], float (&other)[kMine]) {
    CUTE_UNROLL
    for (int h = 0; h < kMine; ++h) {
      int const column = h / 2 * 8 + lane % 4 * 2 + h % 2, head = tile.head + column;
      bool const inside = head < params.h_q;
      float const ref[2] = {smem.reference[0][column], smem.reference[1][column]};
      float const reference = fmaxf(ref[0], ref[1]);
      float factor[2], sum = 0.f, top = negative_infinity();
      CUTE_UNROLL
      for (int c = 0; c < 2; ++c) {
        factor[c] = ref[c] == reference ? 1.f : exp2f(ref[c] - reference);
        float part = 0.f;
        CUTE_UNROLL
        for (int w = 0; w < 4; ++w) {
          part += smem.sum[c][w][column];
          top = fmaxf(top, smem.top[c][w][column]);
        }
        sum += part * factor[c];
      }
      float const sink = params.attn_sink != nullptr && inside ? params.attn_sink[head] : negative_infinity();
      float const scale = output_scale(sum, reference, sink);
      mine[h] = factor[me] * scale;
      other[h] = factor[me ^ 1] * scale;
      if (me == 0 && warp == 0 && lane < 4 && inside) {
        int64_t const row = (int64_t(tile.batch) * params.s_q + tile.token) * params.h_q + head;
        params.max_logits[row] = top * params.scale;
        params.lse[row] = natural_lse(sum, reference);
      }
    }
  }
};

}  // namespace dsa::sm90::prefill_few_heads
