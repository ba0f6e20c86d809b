// Sparse MLA decode on Hopper, 64 heads of one query a tile. attention/sm90/heads64/consumer.cuh draws the pipeline;
// producer.cuh fills its key buffers from a cache.
//
// What bounds it: the producers. A pair of blocks of 64 keys is 4352 cycles of products and takes 8000 (H200), in which
// their warps wait for codes, for registers of stores that are queued behind what Q K^T reads, and for halves of blocks
// that come back late (docs/design-notes.md has the figures). Small batches are bound by the latency of one pass: one
// request of 2048 keys and 128 heads takes 16 us, of which 3 pass until a CTA knows its share after the kernel before,
// 4 until its first keys are there, 4.5 in their scores, softmax and values, 3 until the team's outputs have come, 1.5
// until they are added up.
//
// A CTA has a part of the plan's line, or, where there are few queries for the device, a share of one query's keys in a
// team (team.cuh).
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include <algorithm>
#include <atomic>

#include "arch/any/dependent_grids.cuh"
#include "attention/sm90/heads64/even_consumer.cuh"
#include "attention/sm90/heads64/odd_consumer.cuh"
#include "launch.h"
#include "producer.cuh"
#include "team.cuh"

namespace dsa::sm90::decode_heads64 {

// 2 * (192 + 64) = 512 a lane of four warpgroups: all there are.
constexpr int kConsumerRegisters = 192, kProducerRegisters = 64;

// A warp's arrival for what it has written, a thread's where there are copies.
constexpr int kWritten = kProducerWarps, kCopied = kProducerWarps * 33;
template <class Format, int kColumnCtas>
using Config =
    heads64::Config<Format::kHeadDim, Format::kNope == 0 ? kCopied : kWritten, kCopied, 128, true, kColumnCtas>;

template <class Format, int kColumnCtas>
struct SharedStorage : Config<Format, kColumnCtas>::SharedStorage {
  KeyWalk walks[kProducerWarps];
  BatchRows<Format> batches[kProducerWarps];
  TeamBarriers team;
  DecodeRange range;
};
// What comes from the team takes the place of Q, keys and probabilities.
template <class Config>
constexpr bool kInboxFits = sizeof(TeamInbox<Config>) <= offsetof(typename Config::SharedStorage, reference);
static_assert(kInboxFits<Config<KvV32, 1>> && kInboxFits<Config<KvV4, 1>> && kInboxFits<Config<KvBf16, 1>>);
static_assert(sizeof(SharedStorage<KvV32, 1>) <= 227 * 1024 && sizeof(SharedStorage<KvV4, 1>) <= 227 * 1024);

// A producer warp's walk lies in shared memory: registers are scarce, and it is looked at once in a few blocks.
class Walk {
 public:
  struct Cursor : KeyWalk {
    __device__ __forceinline__ bool next(DecodeParams const& params, KeyBlock& block, int& consumer) {
      consumer = 0;
      return KeyWalk::next(params, block);
    }
  };

  __device__ __forceinline__ Walk(DecodeRange const& range, KeyWalk (&walks)[kProducerWarps]) : walks_(walks) {
    put(threadIdx.x / 32 % kProducerWarps, threadIdx.x % 32, {KeyWalk(range)});
    __syncwarp();
  }

  __device__ __forceinline__ Cursor fetch(int warp) const {
    Cursor const cursor{walks_[warp]};
    __syncwarp();  // all lanes have it
    return cursor;
  }
  __device__ __forceinline__ void put(int warp, int lane, Cursor const& cursor) {
    if (lane == 0) walks_[warp] = cursor;
  }

 private:
  KeyWalk (&walks_)[kProducerWarps];
};

// Of four tiles of codes ahead: the fewest with which a kernel spills nothing, or 8 bytes (v4).
template <class Format>
constexpr int kLateTiles = std::is_same_v<Format, KvV4> ? 1 : 2;

// The two key buffers by turns; their halves are the groups.
template <class Config, int kLate_>
struct Sink {
  static constexpr int kAhead = 4, kLate = kLate_;
  static constexpr int kGroups = 2;
  static constexpr int group_begin(int g) { return g * heads64::kHalfTiles; }
  static constexpr int group_end(int g) { return g == 0 ? heads64::kHalfTiles : Config::kTiles; }
  static constexpr int column_tile(int position) { return position; }

  typename Config::SharedStorage& smem;
  uint32_t block = 0;

  __device__ __forceinline__ explicit Sink(typename Config::SharedStorage& smem) : smem(smem) {}

  __device__ __forceinline__ void wait(int, int g) {
    smem.empty[buffer()][g].wait(block / 2 % 2 ^ 1);  // both buffers start out free
  }
  __device__ __forceinline__ bf16* tile(int, int position) { return smem.k[buffer()] + position * kTileElements; }
  __device__ __forceinline__ uint8_t* valid_rows(int) { return reinterpret_cast<uint8_t*>(&smem.valid[buffer()]); }
  __device__ __forceinline__ Barrier& full(int, int g) { return smem.full[buffer()][g]; }
  __device__ __forceinline__ void next_block(int) { ++block; }

 private:
  __device__ __forceinline__ uint32_t buffer() const { return block % 2; }
};

template <class Format, bool kTeam, int kColumnCtas>
__global__ void __launch_bounds__(kDecodeThreads, 1)
    sparse_mla_decode_heads64(__grid_constant__ DecodeParams const params, __grid_constant__ TensorMaps const maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Config = Config<Format, kColumnCtas>;
  using Shared = SharedStorage<Format, kColumnCtas>;
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& smem = *reinterpret_cast<Shared*>(raw);
  using Work = std::conditional_t<kTeam, TeamWork<Config, Shared>, DecodeWork>;
  if (threadIdx.x == 32) {
    Config::init_barriers(smem);
    if constexpr (kTeam) smem.team.init(params.team, TeamInbox<Config>::bytes(params));
  }
  DecodeRange range;
  if constexpr (kTeam) {
    cluster_arrive();
    cluster_wait();
    range = Work::range_after_grid_before(params);
  } else {
    look_up_after_grid_before([&] { return Work::range_of_cta(params); }, &smem.range, 32);
    range = smem.range;
  }

  launch_dependent_grids();  // not earlier: combine.cu looks at the plan as soon as it starts

  int const warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    heads64::EvenConsumer<Config, Work>(params, maps, smem).run(Work(params, range));
  } else if (warpgroup == 1) {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    heads64::OddConsumer<Config, Work>(params, maps, smem).run(Work(params, range));
  } else {
    cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
    using Sink = Sink<Config, kLateTiles<Format>>;
    DecodeProducer<Format, Walk, Sink>(params, Walk(range, smem.walks), Sink(smem), smem.batches).run();
  }
#endif
}

template <class Format>
auto* team_kernel(int column_ctas) {
  return column_ctas == 1 ? sparse_mla_decode_heads64<Format, true, 1> : sparse_mla_decode_heads64<Format, true, 2>;
}

// How many such teams a device can run at once. It is asked once; one that knows no such clusters runs none.
template <class Format>
int most_teams(Team const& team, int device) {
  constexpr int kDevices = 64;
  static std::atomic<int> most[kDevices][kLargestTeam + 1][3];  // and one more, so that 0 is not known yet
  if (device >= kDevices) return 0;
  std::atomic<int>& known = most[device][team.ctas][team.column_ctas];
  if (known == 0) {
    int teams = 0;
    auto* const kernel = team_kernel<Format>(team.column_ctas);
    if (max_clusters(kernel, team.ctas, sizeof(SharedStorage<Format, 1>), &teams))
      static_cast<void>(cudaGetLastError());
    known = teams + 1;
  }
  return known - 1;
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
  int const tiles = shape.queries * shape.head_blocks(), units = shape.most_units(), parts = shape.parts(sms);
  // The longest part that the queries would be cut into (even_cut). Parts, which another kernel adds up, take in the
  // end about two units' time more than a team does.
  int const pieces = std::min(parts / shape.queries, units);
  int const longest = std::min((units + pieces - 1) / pieces, shape.queries * units / parts + kSecondUnits);
  for (int const ctas : kTeams) {
    if (ctas > units || (units + ctas - 1) / ctas >= longest + 2) continue;
    // (Not sixteen with all columns: eight with half of them each are faster.)
    for (int column_ctas = 2; column_ctas > ctas / kLargestTeam; --column_ctas) {
      Team const team{ctas, column_ctas};
      if (tiles * column_ctas * ctas <= sms && tiles * column_ctas <= most_teams<Format>(team, device)) return team;
    }
  }
  return {};
}

template <class Format>
cudaError_t launch_team(SparseMlaDecodeParams const& p, Team const& team, cudaStream_t stream) {
  return launch_decode(team_kernel<Format>(team.column_ctas), sizeof(SharedStorage<Format, 1>), heads64::kBlockH,
                       heads64::kBlockH / 4, p, team_shape(p), team, stream);
}

template <class Format>
cudaError_t launch(SparseMlaDecodeParams const& p, cudaStream_t stream) {
  Team const team = team_for<Format>(p);
  if (team.ctas > 1) return launch_team<Format>(p, team, stream);
  return launch_decode(sparse_mla_decode_heads64<Format, false, 1>, sizeof(SharedStorage<Format, 1>), heads64::kBlockH,
                       heads64::kBlockH / 4, p, shape_of(p), team, stream);
}

}  // namespace dsa::sm90::decode_heads64
