// Sparse MLA decode on Hopper for up to 16 heads. attention/sm90/few_heads/consumer.cuh draws the pipeline of the
// consumers, each of which has a part of the plan's line, or, where there are few queries for the device, half of a
// query (few_heads_query.cuh), or a piece of one that a team shares (few_heads_team.cuh). Still fewer go to
// heads64.cuh. What fills their key tiles, of FP8 rows:
//
//   fetching warps     | find rows of n + 1 | wait | copy n + 1 | find rows of n + 2 | wait | ...    raw_rows.cuh
//   producer warps     | read n | convert n to tiles     | read n + 1 | convert n + 1      | ...    raw_producer.cuh
//   consumer 0 or 1             | S^T = K Q^T of n | softmax | O^T += V^T P^T |
//
// (Rows of a bf16 cache are copied as they are: producer.cuh.) Barriers: few_heads/config.h between producers and
// consumers, raw_rows.cuh between fetching warps and producers.
//
// What bounds it: all that an SM can do, and its power. A block of 64 rows of v32, for 16 heads, takes shared memory's
// data pipe 2540 wavefronts (1280 of products, 510 of stores, 280 of codes read, 240 of RoPE's copies) and some 270 of
// bulk copies, and the four schedulers 1670 instructions each (3300 of 6700 are the producers', 2000 the consumers'),
// of some 3250 cycles that a CTA takes for it (H200, 128 requests); and an SM then runs at 1.66 GHz, not at 1.98.
// Before its first keys a team takes 2.5 us.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include "arch/any/dependent_grids.cuh"
#include "attention/sm90/few_heads/consumer.cuh"
#include "few_heads_query.cuh"
#include "few_heads_team_weights.cuh"
#include "few_heads_team_work.cuh"
#include "launch.h"
#include "producer.cuh"
#include "raw_producer.cuh"

namespace dsa::sm90::decode_few_heads {

// FP8 rows are fetched by a warpgroup of their own (raw_rows.cuh); rows of a bf16 cache are copied as they are.
template <class Format>
constexpr bool kFetches = Format::kNope > 0;
template <class Format>
constexpr int kThreads = 2 * 128 + kProducerWarps * 32 + (kFetches<Format> ? kFetchWarps * 32 : 0);
// 2 * (128 + 80) + 64 = 480 a lane of five warpgroups, and 2 * (144 + 112) = 512 of four: what a CTA starts with. (Who
// asks for more waits for ever.)
template <class Format>
constexpr uint32_t kConsumerRegisters = kFetches<Format> ? 128 : 144;
template <class Format>
constexpr uint32_t kProducerRegisters = kFetches<Format> ? 80 : 112;
constexpr uint32_t kFetchRegisters = 64;

template <class Format, int kHeads, bool kOneQuery, int kRawBytes>
using ConfigWith =
    few_heads::Config<Format::kHeadDim, kHeads, kProducerWarps,
                      kFetches<Format> ? Format::kNope / kTileCols : few_heads::kAllTiles, kOneQuery, kRawBytes>;

// What is fetched: as many slots as there is room for, those of one block, or of up to two.
template <class Format, int kHeads, bool kOneQuery, int kSlots = 2 * kFedWarps>
constexpr int raw_slots() {
  if constexpr (kSlots > kFedWarps && !ConfigWith<Format, kHeads, kOneQuery, sizeof(RawRows<Format, kSlots>)>::kFits)
    return raw_slots<Format, kHeads, kOneQuery, kSlots - 1>();
  else
    return kSlots;
}
struct Nothing {};
template <class Format, int kHeads, bool kOneQuery, bool = kFetches<Format>>
struct FetchedRows {
  using Raw = RawRows<Format, raw_slots<Format, kHeads, kOneQuery>()>;
  static constexpr int kBytes = sizeof(Raw);
};
template <class Format, int kHeads, bool kOneQuery>
struct FetchedRows<Format, kHeads, kOneQuery, false> {
  using Raw = Nothing;
  static constexpr int kBytes = 0;
};

template <class Format, int kHeads, bool kOneQuery>
using Config = ConfigWith<Format, kHeads, kOneQuery, FetchedRows<Format, kHeads, kOneQuery>::kBytes>;

template <class Format, int kHeads, bool kOneQuery>
struct SharedStorage : Config<Format, kHeads, kOneQuery>::SharedStorage {
  using Inbox = TeamInbox<kHeads>;
  using Raw = typename FetchedRows<Format, kHeads, kOneQuery>::Raw;
  Raw raw;
  LineWalk<2>::Walks walks[kFetches<Format> ? kFetchWarps : kProducerWarps];  // of the warps that walk
  DecodeRange ranges[2];                                                      // of each consumer
  TeamPiece pieces[2];                                                        // the same, in a team
  TeamBarriers team;

  // Where a team's inboxes may lie when consumer 0 needs its tiles no more: there, and in a second room, of `bytes`.
  static constexpr int kOwnBytes = sizeof(SharedStorage::tile[0]);
  static constexpr bool has_second_room(int bytes, int stat_bytes) {
    if constexpr (kFetches<Format>)
      return bytes <= int(sizeof(raw.pair));
    else
      return 2 * bytes + stat_bytes <= kOwnBytes;
  }
  __device__ __forceinline__ void* own_tiles(int consumer) { return this->tile[consumer]; }
  __device__ __forceinline__ void* second_room(int bytes) {
    if constexpr (kFetches<Format>)
      return raw.pair;
    else
      return static_cast<char*>(own_tiles(0)) + bytes;
  }
  // Warps of a CTA that must have read what was fetched before.
  static constexpr int kReaders = kFetches<Format> ? kProducerWarps : 0;
  // What members tell of their sums, at the end of consumer 0's tiles.
  __device__ __forceinline__ typename Inbox::MemberStats* stats(int ctas) {
    return reinterpret_cast<typename Inbox::MemberStats*>(static_cast<char*>(own_tiles(0)) + kOwnBytes -
                                                          Inbox::all_stat_bytes(ctas));
  }
  // What a consumer leaves of its sums, by warps: where it would have put its next probabilities.
  __device__ __forceinline__ auto& sums_left(int consumer) {
    using Sums = typename Inbox::WarpSums[4];
    static_assert(sizeof(Sums) <= sizeof(this->p[0][0]));
    return *reinterpret_cast<Sums*>(this->p[consumer][pieces[consumer].blocks % 2]);
  }
  __device__ __forceinline__ typename Inbox::LaneHeads* references_left(int consumer) {
    return reinterpret_cast<typename Inbox::LaneHeads*>(this->top[consumer][0]);
  }
  // [member][head], where consumer 0's probabilities were.
  __device__ __forceinline__ float* factors() { return reinterpret_cast<float*>(this->p[0][0]); }
  static_assert(kMostMembers * kHeads * sizeof(float) <= sizeof(SharedStorage::p[0][0]));
};
template <class Format, int kHeads, bool kOneQuery>
constexpr int kSharedBytes = sizeof(SharedStorage<Format, kHeads, kOneQuery>);
static_assert(kSharedBytes<KvV32, 16, false> <= 227 * 1024 && kSharedBytes<KvV32, 16, true> <= 227 * 1024);
static_assert(kSharedBytes<KvV4, 16, false> <= 227 * 1024 && kSharedBytes<KvV4, 16, true> <= 227 * 1024);

// What a CTA has: parts of the plan's line, one for each consumer; a query; or, of a query that a team shares, the
// pieces of two members.
enum class Has { kParts, kQuery, kPieces };

template <class Config, class Shared, Has kHas>
struct Sink {
  static constexpr int kAhead = 1;  // (of codes, which bf16 rows have none of)
  static constexpr bool kInBatches = false;
  static constexpr int kGroups = Config::kGroups, kGroupsAhead = Config::kFirst;
  static constexpr int group_begin(int g) { return Config::group_begin(g); }
  static constexpr int group_end(int g) { return Config::group_end(g); }
  static constexpr int column_tile(int position) { return Config::column_tile(position); }

  Shared& smem;
  DecodeParams const& params;
  uint32_t numbers[2] = {0, 0};  // of each consumer's next block

  __device__ __forceinline__ Sink(Shared& smem, DecodeParams const& params) : smem(smem), params(params) {}

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
  // The warp has read the last rows that were fetched: a team may write where they were.
  __device__ __forceinline__ void all_is_read(int lane) {
    if constexpr (kHas == Has::kPieces) {
      if (!Shared::Inbox::template both_make_room<Shared>(params.team) && lane < params.team)
        arrive_remotely(remote_address(&smem.team.ready, lane));
    }
  }
  __device__ __forceinline__ void next_block(int consumer) {
    numbers[0] += consumer == 0;
    numbers[1] += consumer != 0;
  }
};

template <class Format, int kHeads, Has kHas>
__global__ void __launch_bounds__(kThreads<Format>, 1)
    sparse_mla_decode_few_heads(__grid_constant__ DecodeParams const params, __grid_constant__ TensorMaps const maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr bool kOneQuery = kHas != Has::kParts;
  using Config = Config<Format, kHeads, kOneQuery>;
  extern __shared__ __align__(1024) uint8_t raw[];
  using Shared = SharedStorage<Format, kHeads, kOneQuery>;
  auto& smem = *reinterpret_cast<Shared*>(raw);
  // (heads64.cuh: a warp waits for the kernel before from the beginning.)
  if (kOneQuery && threadIdx.x / 32 == 2) wait_for_grid_before();
  if (threadIdx.x / 32 == 1) {
    if (threadIdx.x == 32) {
      if constexpr (kFetches<Format>) smem.raw.init();
      Config::init_barriers(smem);
    }
    if constexpr (kHas == Has::kQuery) {
      if (threadIdx.x == 32) init_query_barriers(smem);
    } else if constexpr (kHas == Has::kPieces) {
      using Inbox = TeamInbox<kHeads>;
      uint32_t const bytes = Inbox::output_bytes(params);
      if (threadIdx.x == 32)
        smem.team.init(params.team * Inbox::template makers_of_room<Shared>(params.team), kWeighingWarps<kHeads>,
                       Inbox::stat_bytes(params), bytes);
    }
  }
  if constexpr (kOneQuery) {
    if constexpr (kHas == Has::kPieces) cluster_arrive_relaxed();
    auto const look_up = [&](bool again) {
      if (threadIdx.x < 32) {
        TeamPiece const piece = TeamPiece::of(params, threadIdx.x / 16);
        if (threadIdx.x % 16 == 0) smem.pieces[threadIdx.x / 16] = piece;
        if (!again) {
          prefetch_indices(piece.runs[0], threadIdx.x % 16);
          prefetch_indices(piece.runs[1], threadIdx.x % 16);
        }
      }
    };
#pragma unroll 1
    for (bool again = false;; again = true) {  // lengths are those of before, as yet
      look_up(again);
      __syncthreads();
      if (again || !params.has_lengths()) break;
    }
    if constexpr (kHas == Has::kPieces) cluster_wait();  // before anybody reaches into the others' memory
  } else {
    look_up_after_grid_before([&] { return DecodeWork::range(params, DecodeWork::part_of(threadIdx.x / 16)); },
                              smem.ranges, 16, params.plan != nullptr);
  }
  launch_dependent_grids();  // not earlier: combine.cu looks at the plan as soon as it starts

  int const warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (warpgroup < 2) {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters<Format>>();
    if constexpr (kOneQuery) {
      using Work = std::conditional_t<kHas == Has::kQuery, QueryWork<Config, Shared>, TeamWork<Config, Shared>>;
      few_heads::Consumer<Config, Work>(params, maps, smem, warpgroup).run(Work(params, smem, warpgroup));
    } else {
      few_heads::Consumer<Config, DecodeWork>(params, maps, smem, warpgroup)
          .run(DecodeWork(params, warpgroup, smem.ranges[warpgroup]));
    }
  } else {
    auto const walk = [&] {
      if constexpr (kOneQuery)
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
      using Sink = Sink<Config, Shared, kHas>;
      if constexpr (kFetches<Format>)
        RawProducer<Format, typename Shared::Raw, Sink>(Sink(smem, params), smem.raw).run();
      else
        DecodeProducer<Format, decltype(walk()), Sink>(params, walk(), Sink(smem, params)).run();
      if constexpr (kHas == Has::kPieces) weigh<kHeads>(params, smem, threadIdx.x / 32 - 8, threadIdx.x % 32);
    }
  }
#endif
}

// A kernel, and what its CTAs have.
template <class Format, int kHeads, Has kHas>
struct Kernel {
  static constexpr auto* kEntry = sparse_mla_decode_few_heads<Format, kHeads, kHas>;
  static constexpr CtaShape kCta = {kThreads<Format>, kSharedBytes<Format, kHeads, kHas != Has::kParts>};

  static cudaError_t launch(SparseMlaDecodeParams const& p, Team const& team, cudaStream_t stream) {
    return launch_decode(kEntry, kCta, kHeads, kHeads, p, shape_of(p), team, stream);
  }
};

// How many teams of so many CTAs a device can run at once.
template <class Format, int kHeads>
int most_teams(int ctas, int device) {
  static MostTeams most;
  using Alone = Kernel<Format, kHeads, Has::kQuery>;
  using Shared = Kernel<Format, kHeads, Has::kPieces>;
  return most(ctas == 1 ? Alone::kEntry : Shared::kEntry, ctas, Alone::kCta, device);
}

template <class Format, int kHeads>
cudaError_t launch(SparseMlaDecodeParams const& p, Team const& team, cudaStream_t stream) {
  if (!team) return Kernel<Format, kHeads, Has::kParts>::launch(p, team, stream);
  if (team.ctas == 1) return Kernel<Format, kHeads, Has::kQuery>::launch(p, team, stream);
  return Kernel<Format, kHeads, Has::kPieces>::launch(p, team, stream);
}

}  // namespace dsa::sm90::decode_few_heads
