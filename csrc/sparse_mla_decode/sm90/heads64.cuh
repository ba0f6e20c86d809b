// Sparse MLA decode on Hopper, 64 heads of one query a tile. attention/sm90/heads64/consumer.cuh draws the pipeline;
// producer.cuh fills its key buffers from a cache.
//
// What bounds it: the producers. A pair of blocks of 64 keys is 4352 cycles of products and takes about 9000 (H200, 128
// requests), in which their warps spend a quarter of the time between blocks, a fifth each on halves of blocks that
// come back late and on registers of stores that are queued behind what Q K^T reads, a twelfth on codes
// (docs/design-notes.md has the figures). Small batches are bound by the latency of one pass: one request of 2048 keys
// and 128 heads takes 10.5 us, of which 2.1 pass from the end of one call until the next one's producers begin (1.3 of
// them until a CTA knows of that end), 2.3 until half of the first keys are there, 1.9 until all are, 1.9 in the last
// ones' scores, softmax and values, 1.9 until the team's outputs have come, 0.4 until they are added up.
//
// A CTA has a part of the plan's line, or, where there are few queries for the device, a share of one query's keys in a
// team (team.cuh).
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include <algorithm>

#include "arch/any/dependent_grids.cuh"
#include "attention/sm90/heads64/even_consumer.cuh"
#include "attention/sm90/heads64/odd_consumer.cuh"
#include "launch.h"
#include "producer.cuh"
#include "team_work.cuh"

namespace dsa::sm90::decode_heads64 {

constexpr int kThreads = 2 * 128 + kProducerWarps * 32;
// 2 * (192 + 64) = 512 a lane of four warpgroups: all there are.
template <int kColumnCtas>
constexpr uint32_t kConsumerRegisters = kColumnCtas == 1 ? 192 : 144;
template <int kColumnCtas>
constexpr uint32_t kProducerRegisters = 256 - kConsumerRegisters<kColumnCtas>;

// A warp's arrival for what it has written, a thread's where there are copies.
constexpr int kWritten = kProducerWarps, kCopied = kProducerWarps * 33;
template <class Format, bool kTeam, int kColumnCtas>
using Config = heads64::Config<Format::kHeadDim, Format::kNope == 0 ? kCopied : kWritten, kCopied, 128, true,
                               kColumnCtas, kTeam && (Format::kHeadDim > kDV)>;

template <class Config>
struct LineStorage : Config::SharedStorage {
  LineWalk<1>::Walks walks[kProducerWarps];
  DecodeRange range[1];
};
template <class Config>
struct TeamStorage : Config::SharedStorage {
  alignas(16) TeamMail<Config> mail;
  KeyRun team_keys[kProducerWarps];  // of the second cache
  TeamShared team;
};
template <class Format, bool kTeam, int kColumnCtas>
using SharedStorage = std::conditional_t<kTeam, TeamStorage<Config<Format, kTeam, kColumnCtas>>,
                                         LineStorage<Config<Format, kTeam, kColumnCtas>>>;
template <class Format, bool kTeam, int kColumnCtas>
constexpr int kSharedBytes = sizeof(SharedStorage<Format, kTeam, kColumnCtas>);
template <class Format>
constexpr bool kFits = kSharedBytes<Format, false, 1> <= 227 * 1024 && kSharedBytes<Format, true, 1> <= 227 * 1024;
static_assert(kFits<KvV32> && kFits<KvV4> && kFits<KvBf16>);

// Tiles of codes that are loaded ahead: as many as registers allow.
template <int kColumnCtas>
constexpr int kAheadTiles = kColumnCtas == 1 ? 4 : 8;

// The two key buffers by turns; their halves are the groups.
template <class Config, int kAhead_, bool kInBatches_>
struct Sink {
  static constexpr int kAhead = kAhead_;
  static constexpr bool kInBatches = kInBatches_;
  static constexpr int kGroups = 2;
  static constexpr int group_begin(int g) { return g * heads64::kHalfTiles; }
  static constexpr int group_end(int g) { return g == 0 ? heads64::kHalfTiles : Config::kTiles; }
  // Of the right half the last tile comes first: it is copied, and on its way while the others are converted.
  static constexpr int column_tile(int position) {
    return position < heads64::kHalfTiles    ? position
           : position == heads64::kHalfTiles ? Config::kTiles - 1
                                             : position - 1;
  }

  typename Config::SharedStorage& smem;
  uint32_t block = 0;

  __device__ __forceinline__ explicit Sink(typename Config::SharedStorage& smem) : smem(smem) {}

  __device__ __forceinline__ void wait(int, int g) {
    smem.empty[buffer()][g].wait(block / 2 % 2 ^ 1);  // both buffers start out free
  }
  __device__ __forceinline__ bf16* tile(int, int position) {
    return smem.k[buffer()] + column_tile(position) * kTileElements;
  }
  __device__ __forceinline__ uint8_t* valid_rows(int) { return reinterpret_cast<uint8_t*>(&smem.valid[buffer()]); }
  __device__ __forceinline__ Barrier& full(int, int g) { return smem.full[buffer()][g]; }
  __device__ __forceinline__ void next_block(int) { ++block; }

 private:
  __device__ __forceinline__ uint32_t buffer() const { return block % 2; }
};

// A CTA with a part of the line.
template <class Format>
__global__ void __launch_bounds__(kThreads, 1)
    sparse_mla_decode_heads64(__grid_constant__ DecodeParams const params, __grid_constant__ TensorMaps const maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Config = Config<Format, false, 1>;
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& smem = *reinterpret_cast<SharedStorage<Format, false, 1>*>(raw);
  if (threadIdx.x == 32) Config::init_barriers(smem);
  look_up_after_grid_before([&] { return DecodeWork::range_of_cta(params); }, smem.range, 32, params.plan != nullptr);
  DecodeRange const range = smem.range[0];

  launch_dependent_grids();  // not earlier: combine.cu looks at the plan as soon as it starts

  int const warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (warpgroup < 2) {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters<1>>();
    typename heads64::Consumer<Config, DecodeWork>::FragO rO;
    if (warpgroup == 0)
      heads64::EvenConsumer<Config, DecodeWork>(params, maps, smem, rO).run(DecodeWork(params, range));
    else
      heads64::OddConsumer<Config, DecodeWork>(params, maps, smem, rO).run(DecodeWork(params, range));
  } else {
    cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters<1>>();
    using Sink = Sink<Config, kAheadTiles<1>, false>;
    DecodeProducer<Format, LineWalk<1>, Sink>(params, {smem.range, smem.walks}, Sink(smem)).run();
  }
#endif
}

// A team's named barrier beside those of heads64/config.h, of all threads: unaligned, since each role is at its own
// place in the program.
constexpr uint32_t kKernelBeforeHasEnded = 0;

// A CTA of a team. A call takes some 20000 cycles, so what can be done before the kernel before has ended is done then.
// One warp waits for that end from the beginning, and all others wait for this warp: to learn of it takes a CTA some
// 1600 cycles from its start, even where it is long over. Nothing else takes as long: six threads initialise barriers,
// and consumers, one of whose warps that is, look up what they work on behind it.
template <class Format, int kColumnCtas>
__global__ void __launch_bounds__(kThreads, 1)
    sparse_mla_decode_heads64_team(__grid_constant__ DecodeParams const params,
                                   __grid_constant__ TensorMaps const maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Config = Config<Format, true, kColumnCtas>;
  using Shared = SharedStorage<Format, true, kColumnCtas>;
  using Work = TeamWork<Config, Shared>;
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& smem = *reinterpret_cast<Shared*>(raw);
  int const warp = threadIdx.x / 32, warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  constexpr int kWaitingWarp = 2;
  if (warp == kWaitingWarp) wait_for_grid_before();
  if (threadIdx.x == 0) smem.team.template init<Config>(params);
  if (threadIdx.x == 32) Config::init_barriers(smem);
  if (warpgroup == 1 && threadIdx.x % 32 == 0) smem.team.template init_warps<Config>(params, warp % 4);
  __syncwarp();
  cluster_arrive_relaxed();  // consumers wait for the others, before they first reach into their memory
  auto const begin = [] {
    cutlass::arch::NamedBarrier(kThreads, kKernelBeforeHasEnded).arrive_and_wait_unaligned();
    launch_dependent_grids();
  };
  if (warpgroup < 2) {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters<kColumnCtas>>();
    begin();
    TeamShare share = Work::share(params);
    if (params.has_lengths()) Work::read_lengths(params, share);
    // What follows is one piece of code for both: who comes first has it fetched.
    typename heads64::Consumer<Config, Work>::FragO rO;
    if (warpgroup == 0)
      heads64::EvenConsumer<Config, Work>(params, maps, smem, rO).run(Work(params, share));
    else
      heads64::OddConsumer<Config, Work>(params, maps, smem, rO).run(Work(params, share));
    typename Work::Sum(params, smem, warpgroup, threadIdx.x % 32, threadIdx.x % 128 / 32).end(rO);
  } else {
    cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters<kColumnCtas>>();
    using Sink = Sink<Config, kAheadTiles<kColumnCtas>, true>;
    // Ready but for lengths.
    TeamShare share = Work::share(params);
    prefetch_indices(share.first_run(), threadIdx.x - 2 * 128);
    prefetch_indices(share.second_run(), threadIdx.x - 2 * 128);
    DecodeProducer<Format, TeamWalk, Sink> producer(params, {share, smem.team_keys}, Sink(smem));
    begin();
    if (params.has_lengths()) {
      Work::read_lengths(params, share);
      producer.walk.open(share);
      __syncwarp();
    }
    producer.run();
    Lane const& self = producer.self;
    typename Work::Sum(params, smem, self.warp() / 4, self.lane(), self.warp() % 4).help();
  }
#endif
}

template <class Format>
auto* team_kernel(int column_ctas) {
  return column_ctas == 1 ? sparse_mla_decode_heads64_team<Format, 1> : sparse_mla_decode_heads64_team<Format, 2>;
}

template <class Format>
int most_teams(Team const& team, int device) {
  static MostTeams most[2];
  return most[team.column_ctas - 1](team_kernel<Format>(team.column_ctas), team.ctas,
                                    {kThreads, kSharedBytes<Format, true, 1>}, device);
}

// The team that a call's queries get: the largest with which all of them run at once, unless parts would be so much
// shorter that they take less time.
template <class Format>
Team team_for(SparseMlaDecodeParams const& p) {
  int device = 0, sms = 0;
  DecodeShape const shape = team_shape(p);
  if (p.batch_invariant || cudaGetDevice(&device) ||
      cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device))
    return {};
  if (int64_t(shape.queries) * shape.head_blocks() > sms) return {};
  int const tiles = shape.queries * shape.head_blocks(), units = shape.most_units(), parts = shape.parts(sms),
            blocks = DecodeShape::blocks_of(shape.topk[0]) + DecodeShape::blocks_of(shape.topk[1]);
  // The longest part that the queries would be cut into (EvenCuts). Parts, which another kernel adds up, take in the
  // end about as many units' time more than a team does.
  constexpr int kPartsCost = 3;
  int const pieces = std::min(parts / shape.queries, units);
  int const longest = std::min((units + pieces - 1) / pieces, shape.queries * units / parts + kSecondUnits);
  for (int const ctas : kTeams) {
    if (ctas > blocks || (blocks + ctas - 1) / ctas >= shape.unit_blocks() * (longest + kPartsCost)) continue;
    for (int column_ctas = 2; column_ctas > 0; --column_ctas) {
      Team const team{ctas, column_ctas};
      if (tiles * column_ctas * ctas <= sms && tiles * column_ctas <= most_teams<Format>(team, device)) return team;
    }
  }
  return {};
}

template <class Format>
cudaError_t launch_team(SparseMlaDecodeParams const& p, Team const& team, cudaStream_t stream) {
  return launch_decode(team_kernel<Format>(team.column_ctas), {kThreads, kSharedBytes<Format, true, 1>},
                       heads64::kBlockH, heads64::kBlockH / 4, p, team_shape(p), team, stream);
}

template <class Format>
cudaError_t launch(SparseMlaDecodeParams const& p, cudaStream_t stream) {
  Team const team = team_for<Format>(p);
  if (team) return launch_team<Format>(p, team, stream);
  return launch_decode(sparse_mla_decode_heads64<Format>, {kThreads, kSharedBytes<Format, false, 1>}, heads64::kBlockH,
                       heads64::kBlockH / 4, p, shape_of(p), team, stream);
}

}  // namespace dsa::sm90::decode_heads64
