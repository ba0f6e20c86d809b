// Attention for up to 16 heads on Hopper: keys are the rows of the products and heads their columns, so that nothing is
// padded to 64 heads.
//
//   producers    | block of 0 | block of 1 | block of 0 | ...      fill the consumers' key tiles: by turns (decode),
//                                                                  or one those of each consumer (prefill)
//   consumer 0   |   S^T = K Q^T | softmax | O^T += V^T P^T |   S^T ...                 of one query
//   consumer 1          |   S^T = K Q^T | softmax | O^T += V^T P^T | ... | write out |  of another
//
// What fills the tiles bounds these kernels; the consumers' only task is to give tiles back soon. Each works on a query
// of its own, so that one's end is covered by the other's blocks. The four warps of a consumer hold different keys of
// the same heads: they share one reference a head, which moves rarely (attention/softmax_math.cuh), and learn of a move
// with the barrier that they need for the probabilities anyway.
//
// Work is the op's:
//   done(), advance()                           the consumer's queries, one after the other
//   tile()                                      the current one: batch, token, head (the first of kHeads)
//   blocks()                                    of its keys, at least 1
//   output_scale, write_stats                   what a head's outputs are multiplied by; lse
//   is_whole, partial                           whether a tile is all of its query, or where its part goes
//   kTeam                                       whether it has one tile, and deals with its output itself:
//   last_products_run, finish                   while that tile's last products run, and behind them
#pragma once

#include <cute/arch/copy_sm90_tma.hpp>

#include "arch/sm90/mma.cuh"
#include "config.h"
#include "softmax.cuh"

namespace dsa::sm90::few_heads {

template <class Config, class Work>
struct Consumer {
  static constexpr int kHeads = Config::kHeads, kMine = kHeads / 4;
  static constexpr int kTileBytes = kTileElements * int(sizeof(bf16));
  using Params = typename Work::Params;
  using Shared = typename Config::SharedStorage;
  using Frag = decltype(partition_fragment_C(typename Config::MmaKQ{}, Shape<_64, Int<kHeads>>{}));
  using Packed = decltype(make_tensor<uint32_t>(Int<size(Frag{}) / 2>{}));  // as bf16 pairs of heads

  Params const& params;
  TensorMaps const& maps;
  Shared& smem;
  int const me, thread, warp, lane;
  float const scale_log2;
  Frag rO[kValueTiles];  // of O^T, 64 value columns each
  HeadStats<kHeads> stats;
  uint32_t block = 0;  // of this consumer, since the kernel's start
  uint32_t q_phase = 0;

  __device__ __forceinline__ Consumer(Params const& params, TensorMaps const& maps, Shared& smem, int me)
      : params(params),
        maps(maps),
        smem(smem),
        me(me),
        thread(threadIdx.x % 128),
        warp(threadIdx.x % 128 / 32),
        lane(threadIdx.x % 32),
        scale_log2(params.scale * kLog2e) {}

  __device__ __forceinline__ void run(Work work) {
    if (work.done()) return;
    if (thread == 0 && (me == 0 || !Config::kSameQ)) load_q(work.tile());
    while (!work.done()) {
      auto const tile = work.tile();
      int const blocks = work.blocks();
      work.advance();
      stats.reset();
      CUTE_UNROLL
      for (int m = 0; m < kValueTiles; ++m) clear(rO[m]);
      smem.q_full[my_q()].wait(q_phase);
      q_phase ^= 1;
#pragma unroll 1
      for (int b = 1; b < blocks; ++b) {
        add_block(b == 1, false, [] {}, [] {});
        ++block;
      }
      add_block(
          blocks == 1, true,
          [&] {
            if (thread == 0 && !work.done()) load_q(work.tile());
          },
          [&] {
            if constexpr (Work::kTeam) work.last_products_run(stats, lane, warp);
          });
      if constexpr (Work::kTeam)
        work.finish(stats, rO, lane, warp);
      else
        finish_query(tile);
      ++block;
    }
  }

 private:
  // Heads past the last read as zero.
  template <class Tile>
  __device__ __forceinline__ void load_q(Tile const& tile) {
    smem.q_full[my_q()].arrive_and_expect_tx(Config::kQBytes);
    CUTE_UNROLL
    for (int t = 0; t < Config::kTiles; ++t)
      SM90_TMA_LOAD_4D::copy(&maps.q, reinterpret_cast<uint64_t*>(&smem.q_full[my_q()]),
                             static_cast<uint64_t>(TMA::CacheHintSm90::EVICT_FIRST),
                             smem.q[my_q()] + t * Config::kQTileElements, t * kTileCols, tile.head, tile.token,
                             tile.batch);
  }

  __device__ __forceinline__ bf16* key_tile(int position) const {
    return smem.tile[me][Shared::buffer(position, block)];
  }
  __device__ __forceinline__ int my_q() const { return Config::kSameQ ? 0 : me; }
  // Positions of a group's tiles, with their column tiles. (As constants: the compiler may not fold these functions,
  // and would index registers.)
  template <int kGroup, class F>
  static __device__ __forceinline__ void for_each_position(F const& f) {
    constexpr int kBegin = Config::group_begin(kGroup), kEnd = Config::group_end(kGroup);
    for_each(make_seq<kEnd - kBegin>{}, [&](auto i) {
      constexpr int kPosition = kBegin + i;
      f(Int<kPosition>{}, Int<Config::column_tile(kPosition)>{});
    });
  }
  template <class Layout>
  static __device__ __forceinline__ auto operand(bf16* first, Layout const& layout) {
    return make_tensor(make_smem_ptr(opaque(first)), layout);
  }
  __device__ __forceinline__ bf16* probabilities() const { return smem.p[me][block % 2]; }

  __device__ __forceinline__ void wait_group(int g) {
    smem.full[me][Shared::barrier(g, block)].wait(Shared::phase(g, block));
    cutlass::arch::fence_view_async_shared();  // the copies are generic writes
  }
  // Only products read the tiles, and the warp's lanes have met where they waited for those.
  __device__ __forceinline__ void release_group(int g) {
    if (lane == 0) smem.empty[me][Shared::barrier(g, block)].arrive();
  }

  // O^T += V^T P^T of this consumer's next block. A query's first one gives references. Of the last one a group of
  // tiles is kept for finish_query; or all, where no keys come any more. Called are q_is_free, when nobody reads Q for
  // this block any more, and products_run, while its last products do.
  template <class QIsFree, class ProductsRun>
  __device__ __forceinline__ void add_block(bool first, bool last, QIsFree const& q_is_free,
                                            ProductsRun const& products_run) {
    Frag rS;
    warpgroup_fence_operand(rS);
    typename Config::MmaKQ const mma_kq;
    auto const keys = mma_kq.get_slice(thread).partition_fragment_A(operand(smem.tile[me][0], KeyLayout{}));
    auto const q =
        mma_kq.get_slice(thread).partition_fragment_B(operand(smem.q[my_q()], typename Config::HeadLayout{}));
    for_each(make_seq<Config::kGroups>{}, [&](auto g) {
      wait_group(g);
      warpgroup_arrive();
      for_each_position<g>([&](auto p, auto column_tile) {
        mma_ss(mma_kq, behind(keys, Shared::buffer(p, block) * kTileBytes),
               behind(q, column_tile * Config::kQTileElements * int(sizeof(bf16))), rS, p == 0);
      });
    });
    warpgroup_commit_batch();
    uint64_t const valid = smem.valid[me][block % 2];
    warpgroup_wait<0>();
    warpgroup_fence_operand(rS);

    mask_scores(rS, valid, lane, warp);
    bool moves = first;
    Frag rP;
    Packed packed;
    if (!first) {
      stats.exponentiate(rS, rP, packed, scale_log2);
      store_transposed(packed, probabilities(), lane, warp);
      cutlass::arch::fence_view_async_shared();
      bool const exceeds = __any_sync(~0u, stats.exceeds(rS, scale_log2));
      if (lane == 0) smem.exceeds[me][block % 2][warp] = exceeds;
      meet();
      // Neither rescales O as a rule (attention/softmax_math.cuh).
      moves = reinterpret_cast<uint32_t const&>(smem.exceeds[me][block % 2]) != 0;
    }
    if (moves) move_references(rS, rP, packed, first);
    q_is_free();

    CUTE_UNROLL
    for (int m = 0; m < kValueTiles; ++m) warpgroup_fence_operand(rO[m]);
    bool const keeps_all = Work::kTeam && last;
    typename Config::MmaVP const mma_vp;
    auto const values = mma_vp.get_slice(thread).partition_fragment_A(operand(smem.tile[me][0], ValueLayout{}));
    auto const weights =
        mma_vp.get_slice(thread).partition_fragment_B(operand(probabilities(), typename Config::HeadLayout{}));
    warpgroup_arrive();
    for_each(make_seq<Config::kGroups>{}, [&](auto i) {
      for_each_position<Config::value_group(i)>([&](auto p, auto column_tile) {
        if constexpr (column_tile < kValueTiles)
          mma_ss(mma_vp, behind(values, Shared::buffer(p, block) * kTileBytes), weights, rO[column_tile], false);
      });
      if (!keeps_all || i == Config::kGroups - 1) warpgroup_commit_batch();
    });
    stats.add(rS, rP, packed);  // while the products run
    products_run();
    for_each(make_seq<Config::kGroups>{}, [&](auto i) {
      constexpr bool kLast = i == Config::kGroups - 1;
      if (!keeps_all || kLast) warpgroup_wait<Config::kGroups - 1 - i>();
      if (!keeps_all && (!last || !kLast)) release_group(Config::value_group(i));
    });
    CUTE_UNROLL
    for (int m = 0; m < kValueTiles; ++m) warpgroup_fence_operand(rO[m]);
  }

  // All warps of this consumer are here.
  __device__ __forceinline__ void meet() { cutlass::arch::NamedBarrier::arrive_and_wait(128, kConsumerBarrier + me); }

  // Some head's scores exceed its reference: the block's maxima over all warps, new references, new probabilities. (Of
  // a query's first block O is 0.)
  __device__ __forceinline__ void move_references(Frag const& rS, Frag& rP, Packed& packed, bool first) {
    float block_top[kMine], factor[kMine];
    CUTE_UNROLL
    for (int h = 0; h < kMine; ++h) block_top[h] = negative_infinity();
    CUTE_UNROLL
    for (int i = 0; i < size(rS); ++i) block_top[fragment_head(i)] = fmaxf(block_top[fragment_head(i)], rS(i));
    auto const larger = [](float a, float b) { return fmaxf(a, b); };
    reduce_over_keys(block_top, larger);
    if (lane < 4) put_heads(smem.top[me][warp], block_top, lane);
    meet();
    CUTE_UNROLL
    for (int w = 0; w < 4; ++w) {
      float theirs[kMine];
      get_heads(smem.top[me][w], theirs, lane);
      CUTE_UNROLL
      for (int h = 0; h < kMine; ++h) block_top[h] = fmaxf(block_top[h], theirs[h]);
    }
    stats.move(block_top, scale_log2, factor);
    if (!first) {
      CUTE_UNROLL
      for (int m = 0; m < kValueTiles; ++m) {
        CUTE_UNROLL
        for (int i = 0; i < size(rO[m]); ++i) rO[m](i) *= factor[fragment_head(i)];
      }
    }
    stats.exponentiate(rS, rP, packed, scale_log2);
    store_transposed(packed, probabilities(), lane, warp);
    cutlass::arch::fence_view_async_shared();
    meet();
  }

  // Adds up the four warps' sums, and writes the result. The output goes through the tiles that add_block has kept.
  template <class Tile>
  __device__ __forceinline__ void finish_query(Tile const& tile) {
    auto const plus = [](float a, float b) { return a + b; };
    auto const larger = [](float a, float b) { return fmaxf(a, b); };
    reduce_over_keys(stats.sum, plus);
    reduce_over_keys(stats.weight, plus);
    reduce_over_keys(stats.top, larger);
    if (lane < 4) {
      put_heads(smem.sum[me][warp], stats.sum, lane);
      put_heads(smem.weight[me][warp], stats.weight, lane);
      put_heads(smem.top[me][warp], stats.top, lane);
    }
    meet();
    float sum[kMine], weight[kMine], top[kMine];
    CUTE_UNROLL
    for (int w = 0; w < 4; ++w) {
      float s[kMine], v[kMine], t[kMine];
      get_heads(smem.sum[me][w], s, lane);
      get_heads(smem.weight[me][w], v, lane);
      get_heads(smem.top[me][w], t, lane);
      CUTE_UNROLL
      for (int h = 0; h < kMine; ++h) {
        sum[h] = w == 0 ? s[h] : sum[h] + s[h];
        weight[h] = w == 0 ? v[h] : weight[h] + v[h];
        top[h] = w == 0 ? t[h] : fmaxf(top[h], t[h]);
      }
    }
    float scale[kMine];
    CUTE_UNROLL
    for (int h = 0; h < kMine; ++h) {
      int const head = tile.head + head_of(h);
      scale[h] = Work::output_scale(params, tile, head, sum[h], stats.reference[h]);
      if (weight[h] != 0.f) scale[h] *= sum[h] / weight[h];
      if (warp == 0 && lane < 4 && head < params.h_q)
        Work::write_stats(params, tile, head, sum[h], stats.reference[h], top[h]);
    }
    if (Work::is_whole(tile))
      store_output(tile, scale);
    else
      store_partial(tile, scale);
    release_group(Config::value_group(Config::kGroups - 1));
  }

  __device__ __forceinline__ int head_of(int h) const { return h / 2 * 8 + lane % 4 * 2 + h % 2; }

  template <class Tile>
  __device__ __forceinline__ void store_output(Tile const& tile, float const (&scale)[kMine]) {
    CUTE_UNROLL
    for (int m = 0; m < kValueTiles; ++m) {
      auto packed = make_tensor<uint32_t>(Int<size(Frag{}) / 2>{});
      CUTE_UNROLL
      for (int i = 0; i < size(rO[m]); i += 2) {
        int const h = fragment_head(i);
        packed(i / 2) = pack_bf16(rO[m](i) * scale[h], rO[m](i + 1) * scale[h + 1]);
      }
      store_transposed(packed, out_tile(m), lane, warp);
    }
    cutlass::arch::fence_view_async_shared();
    meet();
    if (lane == 0) {  // heads past the last are not written
      CUTE_UNROLL
      for (int i = 0; i < kValueTiles / 4; ++i) {
        int const m = warp + i * 4;
        SM90_TMA_STORE_4D::copy(&maps.out, out_tile(m), m * kTileCols, tile.head, tile.token, tile.batch);
      }
      tma_store_arrive();
      tma_store_wait<0>();  // the tiles have been read
    }
  }

  __device__ __forceinline__ bf16* out_tile(int m) const {
    return key_tile(Config::group_begin(Config::kLastGroup) + m / Config::kOutTilesPerKeyTile) +
           m % Config::kOutTilesPerKeyTile * Config::kQTileElements;
  }

  // fp32, for a kernel that adds up the parts of a query.
  template <class Tile>
  __device__ __forceinline__ void store_partial(Tile const& tile, float const (&scale)[kMine]) {
    CUTE_UNROLL
    for (int i = 0; i < size(Frag{}); ++i) {
      int const h = fragment_head(i);
      float* const row = Work::partial(params, tile, head_of(h)) + warp * 16 + fragment_row(i) * 8 + lane / 4;
      CUTE_UNROLL
      for (int m = 0; m < kValueTiles; ++m) row[m * kTileCols] = rO[m](i) * scale[h];
    }
  }
};

}  // namespace dsa::sm90::few_heads
