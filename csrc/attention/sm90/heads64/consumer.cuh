// Attention on Hopper, 64 heads of one query a tile: what the two consumer warpgroups share.
//
//   producer   | K0 left | K0 right | K1 left | K1 right | K2 left ...          one barrier a half of a key block
//   even       |    S0 = Q K0^T    | softmax0 | O[:, :256] += P0 V0 | ... += P1 V1 |  S2 = Q K2^T  |
//   odd        |         | S1 = Q K1^T |  O[:, 256:] += P0 V0 | softmax1 | O += P1 V1 |  S3 ...
//
// Each consumer scores every other block and adds both blocks to its half of the value columns; the probabilities of
// the other's block come through shared memory. The tensor cores always have work queued: while the even consumer is
// in its softmax the odd one's scores run, and the odd softmax is covered by both consumers' P0 V0. Neither rescales O
// as a rule (attention/softmax_math.cuh), so nothing between two products waits for registers to settle.
//
// Q of the next tile is fetched once the last scores are done, and the next tile's first scores run while this one is
// written out.
//
// Work is the op's:
//   done(), advance()                 the CTA's tiles, one after the other; not of a team, which has one
//   tile()                            the current one: batch, token, head (the first of 64)
//   pairs()                           of its key blocks, at least 1; of a team, blocks()
//   output_scale, write_stats         what a head's outputs are multiplied by; lse
//   is_whole, partial                 whether a tile is all of its query, or where its part goes
//   kTeam                             whether it has one tile, a part of which other CTAs have
//   Sum(params, smem, consumer, lane, warp)
//                                     then adds up theirs: tell(stats), once a consumer has all its sums; its part of O
//                                     is left in rO
#pragma once

#include <cute/arch/copy_sm90_tma.hpp>

#include "arch/sm90/mma.cuh"
#include "config.h"
#include "epilogue.cuh"
#include "softmax.cuh"

namespace dsa::sm90::heads64 {

template <class Config, class Work_>
struct Consumer {
  using Work = Work_;
  using Params = typename Work::Params;
  using Shared = typename Config::SharedStorage;
  using MmaPV = typename Config::MmaPV;
  using MmaPVShared = typename Config::MmaPVShared;
  using FragO = decltype(partition_fragment_C(MmaPV{}, Shape<Int<kBlockH>, Int<Config::kOwnV>>{}));
  using FragS = decltype(partition_fragment_C(MmaQK{}, Shape<Int<kBlockH>, Int<kBlockK>>{}));
  using FragP = decltype(make_tensor<bf16>(partition_shape_A(MmaPV{}, Shape<Int<kBlockH>, Int<kBlockK>>{})));

  Params const& params;
  TensorMaps const& maps;
  Shared& smem;
  int const thread, warp, lane;
  float const scale_log2;
  FragO& rO;
  FragS rS;
  FragP rP;
  RowStats stats;
  uint32_t phase = 0;    // of the full barriers
  uint32_t q_phase = 0;  // of q_full

  __device__ __forceinline__ Consumer(Params const& params, TensorMaps const& maps, Shared& smem, FragO& rO)
      : params(params),
        maps(maps),
        smem(smem),
        thread(threadIdx.x % 128),
        warp(threadIdx.x % 128 / 32),
        lane(threadIdx.x % 32),
        scale_log2(params.scale * kLog2e),
        rO(rO) {}

  // Q of one tile, by one thread. Heads past the last read as zero.
  template <class Tile>
  __device__ __forceinline__ void load_q(Tile const& tile) {
    smem.q_full.arrive_and_expect_tx(Config::kQBytes);
    CUTE_UNROLL
    for (int t = 0; t < Config::kTiles; ++t)
      SM90_TMA_LOAD_4D::copy(&maps.q, reinterpret_cast<uint64_t*>(&smem.q_full),
                             static_cast<uint64_t>(TMA::CacheHintSm90::EVICT_FIRST), smem.q + t * kTileElements,
                             t * kTileCols, tile.head, tile.token, tile.batch);
  }

  // There is no room for two tiles of Q: the next one waits in L2.
  template <class Tile>
  __device__ __forceinline__ void prefetch_q(Tile const& tile) {
    CUTE_UNROLL
    for (int t = 0; t < Config::kTiles; ++t)
      SM90_TMA_LOAD_4D::PREFETCH::copy(&maps.q, t * kTileCols, tile.head, tile.token, tile.batch);
  }

  __device__ __forceinline__ void wait_q() {
    smem.q_full.wait(q_phase);
    q_phase ^= 1;
  }

  // The copies are generic writes, wgmma reads through the asynchronous proxy.
  __device__ __forceinline__ void wait_keys(int buffer, int half) {
    smem.full[buffer][half].wait(phase);
    cutlass::arch::fence_view_async_shared();
  }

  // rS = Q K^T over half of the columns of the block in `buffer`, whose keys have landed: the left half, then the right
  // one, which commits both. Does not wait.
  template <int kHalf>
  __device__ __forceinline__ void issue_scores(int buffer) {
    constexpr int kFirst = kHalf * kHalfTiles, kCols = kHalf == kLeft ? kHalfV : Config::kDQk - kHalfV;
    using Layout = ScoreLayout<kCols>;
    warpgroup_arrive();
    mma_ss(MmaQK{}, make_tensor(make_smem_ptr(opaque(smem.q) + kFirst * kTileElements), Layout{}),
           make_tensor(make_smem_ptr(opaque(smem.k[buffer]) + kFirst * kTileElements), Layout{}), rS, thread,
           kHalf == kLeft);
    if constexpr (kHalf == kRight) warpgroup_commit_batch();
  }

  // rO += P V over half of the value columns: P from this consumer's registers ...
  __device__ __forceinline__ void issue_own_values(int buffer, int half) {
    warpgroup_fence_operand(rP);
    warpgroup_arrive();
    mma_rs(MmaPV{}, rP, values(buffer, half), rO, thread);
    warpgroup_commit_batch();
  }

  // ... or from the other's, in shared memory.
  __device__ __forceinline__ void issue_other_values(bf16* p, int buffer, int half) {
    warpgroup_arrive();
    mma_ss(MmaPVShared{}, make_tensor(make_smem_ptr(opaque(p)), TileLayout{}), values(buffer, half), rO, thread, false);
    warpgroup_commit_batch();
  }

  // All products are done and their registers may be touched; elsewhere none is touched while products are in flight.
  // Products are issued on straight-line code alone: where paths with different products in flight meet, ptxas
  // serialises every product of the kernel.
  __device__ __forceinline__ void wait_products() {
    warpgroup_wait<0>();
    warpgroup_fence_operand(rO);
    warpgroup_fence_operand(rS);
  }

  __device__ __forceinline__ void release(int buffer, int half) {
    __syncwarp();  // all lanes have read what they need
    if (lane == 0) smem.empty[buffer][half].arrive();
  }

  // The odd buffer's half, when the output staged there has been read.
  __device__ __forceinline__ void release_staged(int half) {
    if (lane == 0) {
      tma_store_wait<0>();
      smem.empty[1][half].arrive();
    }
  }

  __device__ __forceinline__ void begin_tile() {
    clear(rO);
    stats = RowStats{};
  }

 private:
  __device__ __forceinline__ auto values(int buffer, int half) const {
    int column = half * kHalfV;
    if constexpr (Config::kColumnCtas > 1) column += params.place().column_cta * Config::kOwnV;
    return make_tensor(make_smem_ptr(opaque(smem.k[buffer]) + column * kBlockK), ValueLayout<Config::kOwnV>{});
  }
};

}  // namespace dsa::sm90::heads64
