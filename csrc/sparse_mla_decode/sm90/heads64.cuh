// Sparse MLA decode on Hopper, 64 heads of one query a tile. attention/sm90/heads64/consumer.cuh draws the pipeline;
// producer.cuh fills its key buffers from a cache.
//
// What bounds it: the producers. A pair of blocks of 64 keys is 4352 cycles of products and takes 8000 (H200), in which
// their warps wait for codes, for registers of stores that are queued behind what Q K^T reads, and for halves of blocks
// that come back late (docs/design-notes.md has the figures). Small batches are bound by the latency of one pass
// through the code.
//
// A CTA has a part of the plan's line, or, where the device has two to eight CTAs for each query, a share of one
// query's keys in a team (team.cuh).
#pragma once

#include <cutlass/arch/reg_reconfig.h>

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
template <class Format>
using Config = heads64::Config<Format::kHeadDim, Format::kNope == 0 ? kCopied : kWritten, kCopied, 128, true>;

template <class Format>
struct SharedStorage : Config<Format>::SharedStorage {
  KeyWalk walks[kProducerWarps];
  BatchRows<Format> batches[kProducerWarps];
  TeamBarriers team;
};
// What comes from the team goes into the key buffers, and where there is none after them, over the probabilities.
template <class Format>
constexpr bool kInboxFits =
    sizeof(TeamInbox) <= sizeof(Config<Format>::SharedStorage::k) + sizeof(Config<Format>::SharedStorage::p);
static_assert(kInboxFits<KvV32> && kInboxFits<KvV4> && kInboxFits<KvBf16>);
static_assert(sizeof(SharedStorage<KvV32>) <= 227 * 1024 && sizeof(SharedStorage<KvV4>) <= 227 * 1024);

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

template <class Format, bool kTeam>
__global__ void __launch_bounds__(kDecodeThreads, 1)
    sparse_mla_decode_heads64(__grid_constant__ DecodeParams const params, __grid_constant__ TensorMaps const maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Config = Config<Format>;
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& smem = *reinterpret_cast<SharedStorage<Format>*>(raw);
  using Work = std::conditional_t<kTeam, TeamWork<SharedStorage<Format>>, DecodeWork>;
  if (threadIdx.x == 0) {
    Config::init_barriers(smem);
    if constexpr (kTeam) smem.team.init(params.team);
  }
  if constexpr (kTeam) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }

  DecodeRange const range =
      look_up_after_grid_before([&] { return DecodeWork::range<true>(params, DecodeWork::part_of(params)); });
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

// CTAs that share the keys of a query: as many as the device has for each, if all can run at once and few are left
// over. What a device takes is asked once.
template <class Format>
int team_size(SparseMlaDecodeParams const& p, int device, int sms) {
  DecodeShape const shape = shape_of(p);
  if (p.batch_invariant || shape.queries == 0) return 1;
  int const room = sms / shape.head_blocks() / shape.queries;
  int size = 1;
  while (size * 2 <= room) size *= 2;
  if (size == 1 || size > kLargestTeam || size > shape.most_units()) return 1;

  constexpr int kDevices = 64;
  static std::atomic<int> most_teams[kDevices][kLargestTeam + 1];  // and one more, so that 0 is not known yet
  if (device >= kDevices) return 1;
  int teams = most_teams[device][size];
  if (teams == 0) {
    if (max_clusters(sparse_mla_decode_heads64<Format, true>, size, sizeof(SharedStorage<Format>), &teams)) return 1;
    most_teams[device][size] = ++teams;
  }
  return shape.queries * shape.head_blocks() < teams ? size : 1;
}

template <class Format>
cudaError_t launch(SparseMlaDecodeParams const& p, cudaStream_t stream) {
  int device = 0, sms = 0;
  if (cudaError_t e = cudaGetDevice(&device)) return e;
  if (cudaError_t e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device)) return e;
  int const team = team_size<Format>(p, device, sms);
  return launch_decode(team > 1 ? sparse_mla_decode_heads64<Format, true> : sparse_mla_decode_heads64<Format, false>,
                       sizeof(SharedStorage<Format>), heads64::kBlockH, heads64::kBlockH / 4, team, p, stream);
}

}  // namespace dsa::sm90::decode_heads64
