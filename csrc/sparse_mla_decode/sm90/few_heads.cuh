// Sparse MLA decode on Hopper for up to 16 heads. attention/sm90/few_heads/consumer.cuh draws the pipeline of the
// consumers, each of which has a part of the plan's line, or, where there are few queries for the device, a piece of
// one query's keys in a team (few_heads_team.cuh). Still fewer go to heads64.cuh. What fills their key tiles, of FP8
// rows:
//
//   fetching warps     | find rows of n + 1 | wait | copy n + 1 | find rows of n + 2 | wait | ...    raw_rows.cuh
//   producer warps     | read n | convert n to tiles     | read n + 1 | convert n + 1      | ...    raw_producer.cuh
//   consumer 0 or 1             | S^T = K Q^T of n | softmax | O^T += V^T P^T |
//
// (Rows of a bf16 cache are copied as they are: producer.cuh.) Barriers: few_heads/config.h between producers and
// consumers, raw_rows.cuh between fetching warps and producers.
//
// What bounds it: a block's way from memory. There is room for one as it comes, so the next one's copies begin when it
// has been read, and take longer than it takes to be converted: with 128 requests of 16 heads (H200) producers wait for
// them a quarter of their time, shared memory's data pipe is busy for 74 % of it, the link between the halves of L2 for
// 75 %. A block of 64 keys takes each of the two consumers 3.7 us, of which its products take 0.8. A team takes 6 to 7
// us beyond its blocks.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include "arch/any/dependent_grids.cuh"
#include "attention/sm90/few_heads/consumer.cuh"
#include "few_heads_team_work.cuh"
#include "launch.h"
#include "producer.cuh"
#include "raw_producer.cuh"

namespace dsa::sm90::decode_few_heads {

// FP8 rows are fetched by a warpgroup of their own (raw_rows.cuh); rows of a bf16 cache are copied as they are.
template <class Format>
constexpr bool kFetches = Format::kNope > 0;
struct Nothing {};
template <class Format>
using Raw = std::conditional_t<kFetches<Format>, RawBlock<Format>, Nothing>;

template <class Format>
constexpr int kThreads = 2 * 128 + kProducerWarps * 32 + (kFetches<Format> ? kFetchWarps * 32 : 0);
// 2 * (128 + 80) + 64 = 480 a lane of five warpgroups: all there are. (Four have 512.)
constexpr int kConsumerRegisters = 128, kFetchRegisters = 64;
template <class Format>
constexpr uint32_t kProducerRegisters = kFetches<Format> ? 80 : 112;

template <class Format, int kHeads>
using Config = few_heads::Config<Format::kHeadDim, kHeads, kProducerWarps,
                                 kFetches<Format> ? Format::kNope / kTileCols : few_heads::kAllTiles,
                                 kFetches<Format> ? int(sizeof(Raw<Format>)) : 0>;

template <class Format, int kHeads>
struct SharedStorage : Config<Format, kHeads>::SharedStorage {
  Raw<Format> raw;
  LineWalk<2>::Walks walks[kProducerWarps];
  DecodeRange ranges[2];  // of each consumer
  TeamPiece pieces[2];    // the same, in a team
  TeamBarriers team;
};
static_assert(sizeof(SharedStorage<KvV32, 16>) <= 227 * 1024 && sizeof(SharedStorage<KvV4, 16>) <= 227 * 1024);

template <class Config>
struct Sink {
  using Shared = typename Config::SharedStorage;
  static constexpr int kAhead = 1, kLate = 0;  // (of codes, which bf16 rows have none of)
  static constexpr int kGroups = Config::kGroups, kGroupsAhead = Config::kFirst;
  static constexpr int group_begin(int g) { return Config::group_begin(g); }
  static constexpr int group_end(int g) { return Config::group_end(g); }
  static constexpr int column_tile(int position) { return Config::column_tile(position); }

  Shared& smem;
  uint32_t numbers[2] = {0, 0};  // of each consumer's next block

  __device__ __forceinline__ explicit Sink(Shared& smem) : smem(smem) {}

  __device__ __forceinline__ uint32_t number(int consumer) const { return consumer == 0 ? numbers[0] : numbers[1]; }
  __device__ __forceinline__ void wait(int consumer, int g) {
    uint32_t const n = number(consumer);
    smem.empty[consumer][Shared::barrier(g, n)].wait(Shared::phase(g, n) ^ 1);  // all tiles start out free
  }
  __device__ __forceinline__ bf16* tile(int consumer, int position) {
    return smem.tile[consumer][Shared::buffer(position, number(consumer))];
  }
  __device__ __forceinline__ uint8_t* valid_rows(int consumer) {
    return reinterpret_cast<uint8_t*>(&smem.valid[consumer][number(consumer) % 2]);
  }
  __device__ __forceinline__ Barrier& full(int consumer, int g) {
    return smem.full[consumer][Shared::barrier(g, number(consumer))];
  }
  __device__ __forceinline__ void next_block(int consumer) {
    numbers[0] += consumer == 0;
    numbers[1] += consumer != 0;
  }
};

template <class Format, int kHeads, bool kTeam>
__global__ void __launch_bounds__(kThreads<Format>, 1)
    sparse_mla_decode_few_heads(__grid_constant__ DecodeParams const params, __grid_constant__ TensorMaps const maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Config = Config<Format, kHeads>;
  extern __shared__ __align__(1024) uint8_t raw[];
  using Shared = SharedStorage<Format, kHeads>;
  auto& smem = *reinterpret_cast<Shared*>(raw);
  // (heads64.cuh: a warp waits for the kernel before from the beginning.)
  if (kTeam && threadIdx.x / 32 == 2) wait_for_grid_before();
  if (threadIdx.x / 32 == 1) {
    if (threadIdx.x == 32) {
      if constexpr (kFetches<Format>) smem.raw.init();
      Config::init_barriers(smem);
    }
    if constexpr (kTeam) {
      using Inbox = TeamInbox<kHeads>;
      uint32_t const bytes = Inbox::output_bytes(params);
      if (threadIdx.x == 32)
        smem.team.init(params.team, Inbox::template both_make_room<Shared>(params.team), Inbox::stat_bytes(params),
                       bytes);
    }
  }
  if constexpr (kTeam) {
    cluster_arrive_relaxed();  // consumers wait for the others, before they first reach into their memory
    auto const look_up = [&] {
      if (threadIdx.x < 32) {
        TeamPiece const piece = TeamPiece::of(params, threadIdx.x / 16);
        if (threadIdx.x % 16 == 0) smem.pieces[threadIdx.x / 16] = piece;
      }
    };
#pragma unroll 1
    for (bool again = false;; again = true) {  // lengths are those of before, as yet
      look_up();
      __syncthreads();
      if (again || !TeamPiece::has_lengths(params)) break;
    }
  } else {
    look_up_after_grid_before([&] { return DecodeWork::range(params, DecodeWork::part_of(threadIdx.x / 16)); },
                              smem.ranges, 16, params.plan != nullptr);
  }
  launch_dependent_grids();  // not earlier: combine.cu looks at the plan as soon as it starts

  int const warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (warpgroup < 2) {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    if constexpr (kTeam) {
      using Work = TeamWork<Config, Shared>;
      few_heads::Consumer<Config, Work>(params, maps, smem, warpgroup).run(Work(params, smem, warpgroup));
    } else {
      few_heads::Consumer<Config, DecodeWork>(params, maps, smem, warpgroup)
          .run(DecodeWork(params, warpgroup, smem.ranges[warpgroup]));
    }
  } else {
    auto const walk = [&] {
      if constexpr (kTeam)
        return TeamWalk(smem.pieces);
      else
        return LineWalk<2>(smem.ranges, smem.walks);
    };
    if (kFetches<Format> && warpgroup == 4) {
      if constexpr (kFetches<Format>) {
        cutlass::arch::warpgroup_reg_dealloc<kFetchRegisters>();
        fetch_blocks<Format>(params, walk(), smem.raw);
      }
    } else {
      cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters<Format>>();
      if constexpr (kFetches<Format>)
        RawProducer<Format, Sink<Config>>(Sink<Config>(smem), smem.raw).run();
      else
        DecodeProducer<Format, decltype(walk()), Sink<Config>>(params, walk(), Sink<Config>(smem)).run();
    }
    if constexpr (kTeam) cluster_wait();
  }
#endif
}

// How many teams of so many CTAs a device can run at once.
template <class Format, int kHeads>
int most_teams(int ctas, int device) {
  static MostTeams most;
  return most(sparse_mla_decode_few_heads<Format, kHeads, true>, ctas,
              {kThreads<Format>, sizeof(SharedStorage<Format, kHeads>)}, device);
}

template <class Format, int kHeads>
cudaError_t launch(SparseMlaDecodeParams const& p, Team const& team, cudaStream_t stream) {
  return launch_decode(
      team ? sparse_mla_decode_few_heads<Format, kHeads, true> : sparse_mla_decode_few_heads<Format, kHeads, false>,
      {kThreads<Format>, sizeof(SharedStorage<Format, kHeads>)}, kHeads, kHeads, p, shape_of(p), team, stream);
}

}  // namespace dsa::sm90::decode_few_heads
