// Up to 16 heads: a query's keys spread over the consumers of a cluster's CTAs, a team of two for each CTA. They add up
// their outputs through shared memory, and no second kernel is needed. (team.cuh does so for 64 heads.)
//
// Each member finishes an equal share of each warp's columns. At the end of its keys it leaves its threads' sums and
// its references to a producer warp, and writes every share of its output, as it was accumulated and as the threads
// hold it, where the share will be finished. Meanwhile that warp adds up the sums and tells all CTAs, and the producer
// warps work out what each member's outputs count for (few_heads_team_weights.cuh). Who finishes adds up what has come
// in the order of the members: the same bits on every launch. To the own CTA ordinary stores go, to the others
// asynchronous ones (the network between CTAs gives an SM some 25 bytes a nanosecond, and its shared memory 220). Warps
// send to members in different orders, or all would send to the same one at the same time.
//
// Consumer 0 has its blocks before consumer 1. So the inboxes of both take the place of what is needed no more then:
// consumer 0's key tiles, and the rows as they were fetched, if they were. Consumer 0 has sent everything before
// consumer 1 has anything to send. (Where there is too little room, as of six CTAs with 16 heads of some caches, each
// takes the place of its own consumer's tiles.)
//
//   barrier    arrives                                                    waits
//   ready      4 warps of consumer 0 (or of both, as said) of all CTAs,   who sends or tells, before it does
//              when they read keys no more; 8 producer warps, when
//              they have read the last rows that were fetched
//   summed[c]  4 warps of consumer c, when their sums are there           the producer warp that tells
//   told       2 producer warps, when they have told the own CTA of the   producer warps, before they weigh
//              consumers' sums; bytes from the others (one thread
//              expects them from the start)
//   weighed    producer warps that have heads                             consumers, before they add up
//   received   8 warps of the own consumers, and bytes from the others    consumers, before they add up
//   cluster's  all threads, when the CTA's barriers are there             all threads, when the work is known
#pragma once

#include "arch/any/cluster.cuh"
#include "arch/sm90/remote.cuh"
#include "attention/sm90/few_heads/softmax.cuh"
#include "team_shares.cuh"
#include "work.cuh"

namespace dsa::sm90::decode_few_heads {

// CTAs of a team: those that are asked for, and the order. (A single one: few_heads_query.cuh.)
constexpr int kFewHeadsTeams[] = {8, 6, 4, 3, 2, 1};

// What comes from the team.
template <int kHeads>
struct TeamInbox {
  // Of O^T a thread has for every 64 value columns and 8 heads one vector of four floats: two columns, two heads.
  static constexpr int kHeadVectors = kHeads / 8, kVectors = kValueTiles * kHeadVectors;
  using Shares = TeamShares<kVectors>;
  // What is told of a consumer: sums, weights (few_heads/softmax.cuh) and references of a lane's kMine heads, by four
  // lanes that have all heads; as vectors, [vector][lane].
  static constexpr int kMine = kHeads / 4, kStatVectors = (3 * kMine + 3) / 4;
  struct MemberStats {
    float4 vector[kStatVectors][4];
    float4 apart;  // members lie in different banks
  };
  // What a consumer leaves: its warps' sums [0] and weights [1], by 16 lanes of different keys; and its references.
  struct alignas(4 * kMine) LaneHeads {
    float of[kMine];
  };
  using WarpSums = LaneHeads[2][16];

  // Of sums, and of outputs for each consumer.
  static __device__ __forceinline__ constexpr int all_stat_bytes(int ctas) {
    return 2 * ctas * int(sizeof(MemberStats));
  }
  static __device__ __forceinline__ constexpr int bytes(int ctas) {
    return 2 * ctas * Shares(2 * ctas).each * 128 * int(sizeof(float4));
  }
  // Whether each takes the place of its consumer's tiles; and how many warps of a CTA make room.
  template <class Shared>
  static __device__ __forceinline__ constexpr bool both_make_room(int ctas) {
    return !Shared::has_second_room(bytes(ctas), all_stat_bytes(ctas));
  }
  template <class Shared>
  static __device__ __forceinline__ constexpr int makers_of_room(int ctas) {
    return both_make_room<Shared>(ctas) ? 8 : 4 + Shared::kReaders;
  }

  // First member that a warp sends to, and who so finishes its first share.
  static __device__ __forceinline__ int first_member(int warp, int members) { return warp * members / 4; }

  // Bytes that other CTAs send to this one: of sums, and of outputs. All lanes of a warp call it.
  static __device__ __forceinline__ uint32_t stat_bytes(DecodeParams const& p) {
    return (2 * p.team - 2) * uint32_t(sizeof(MemberStats::vector));
  }
  static __device__ __forceinline__ uint32_t output_bytes(DecodeParams const& p) {
    Shares const shares(2 * p.team, p.share.divisor);
    int const lane = threadIdx.x % 32, member = int(cluster_rank()) * 2 + lane / 4;
    int const mine = lane < 8 ? shares.count(shares.share_of(member, first_member(lane % 4, 2 * p.team))) : 0;
    int const vectors = __reduce_add_sync(~0u, mine);
    return (2 * p.team - 2) * uint32_t(vectors * 32 * sizeof(float4));
  }
};

struct TeamBarriers {
  Barrier ready, summed[2], told, weighed, received;

  // By one thread, before any other touches them.
  __device__ __forceinline__ void init(int makers_of_room, int weighing_warps, uint32_t stat_bytes,
                                       uint32_t output_bytes) {
    ready.init(makers_of_room);
    for (Barrier& b : summed) b.init(4);
    told.init(1 + 2);
    weighed.init(weighing_warps);
    received.init(1 + 8);
    cutlass::arch::fence_barrier_init();
    told.arrive_and_expect_tx(stat_bytes);
    received.arrive_and_expect_tx(output_bytes);
  }
};

// A place in this CTA's shared memory, in the CTA `cta` of the team, one of whose barriers counts what comes.
class Outbox {
 public:
  __device__ __forceinline__ Outbox(float4* place, Barrier const& barrier, int cta, bool own)
      : place_(place), own_(own) {
    if (own_) return;
    address_ = remote_address(place, cta);
    barrier_ = remote_address(&barrier, cta);
  }
  __device__ __forceinline__ void put(int i, float4 const& v) const {
    if (own_)
      place_[i] = v;
    else
      store_remotely(address_ + i * sizeof(float4), reinterpret_cast<uint4 const&>(v), barrier_);
  }

 private:
  float4* place_;
  bool own_;
  uint32_t address_, barrier_;
};

// One thread of a consumer, in a team of kCtas. Config: few_heads::Config; Shared: its storage, with TeamBarriers team.
template <class Config, class Shared, int kCtas>
class TeamSum {
 public:
  __device__ __forceinline__ TeamSum(Shared& smem, int me, int lane, int warp)
      : smem_(smem),
        me_(me),
        lane_(lane),
        warp_(warp),
        rank_(int(cluster_rank())),
        first_(Inbox::first_member(warp, kMembers)) {}

  // Once the team's inboxes are ready.
  template <class TensorO>
  __device__ __forceinline__ void send(TensorO const& rO) {
    int const from = rank_ * 2 + me_;
    CUTE_UNROLL
    for (int share = 0; share < kMembers; ++share) {
      int const to = Shares(kMembers).member_of(share, first_);
      Outbox const theirs(part(to % 2, from), smem_.team.received, to / 2, to / 2 == rank_);
      CUTE_UNROLL
      for (int v = 0; v < kShare && share * kShare + v < Shares::kVectors; ++v) {
        int const i = share * kShare + v, m = i / Inbox::kHeadVectors, e = i % Inbox::kHeadVectors * 4;
        theirs.put(v * 128, make_float4(rO[m](e), rO[m](e + 1), rO[m](e + 2), rO[m](e + 3)));
      }
    }
    __syncwarp();
    if (lane_ == 0) smem_.team.received.arrive();
  }

  __device__ __forceinline__ void finish(DecodeParams const& p, int batch, int token) {
    int const share = Shares(kMembers).share_of(rank_ * 2 + me_, first_), count = Shares(kMembers).count(share);
    // Of each vector, its factors among a member's, and where its output goes: eight heads of the warp's 16 columns.
    // (The compiler would find that after the waits.)
    int factor_at[kShare];
    int64_t out_at[kShare];
    CUTE_UNROLL
    for (int v = 0; v < kShare; ++v) {
      int const i = share * kShare + v, first_head = i % Inbox::kHeadVectors * 8;
      factor_at[v] = first_head + lane_ % 4 * 2;
      out_at[v] = batch * p.out_stride_batch + token * p.out_stride_token +
                  (first_head + lane_ / 4) * p.out_stride_head + i / Inbox::kHeadVectors * kTileCols + warp_ * 16 +
                  lane_ % 4 * 4;
      asm volatile("" : "+r"(factor_at[v]), "+l"(out_at[v]));
    }
    smem_.team.weighed.wait(0);
    smem_.team.received.wait(0);
    uint32_t packed[kShare][2];
    CUTE_UNROLL
    for (int v = 0; v < kShare; ++v) {
      if (v >= count) break;
      float4 acc = {};
      CUTE_UNROLL
      for (int from = 0; from < kMembers; ++from) {
        float4 const theirs = part(me_, from)[v * 128];
        float2 const factor = reinterpret_cast<float2 const&>(smem_.factors()[from * kHeads + factor_at[v]]);
        acc.x += factor.x * theirs.x;
        acc.y += factor.y * theirs.y;
        acc.z += factor.x * theirs.z;
        acc.w += factor.y * theirs.w;
      }
      packed[v][0] = pack_bf16(acc.x, acc.y);
      packed[v][1] = pack_bf16(acc.z, acc.w);
    }
    // Transposed where the warp's first member's vectors were.
    __syncwarp();
    CUTE_UNROLL
    for (int v = 0; v < kShare; ++v)
      if (v < count)
        few_heads::store_matrices_transposed(cast_smem_ptr_to_uint(rows(v)) + lane_ % 8 * 32 + lane_ / 8 % 2 * 16,
                                             packed[v][0], packed[v][1]);
    __syncwarp();
    CUTE_UNROLL
    for (int v = 0; v < kShare; ++v)
      if (v < count && factor_at[v] - lane_ % 4 * 2 + lane_ / 4 < p.h_q)
        *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(p.out) + out_at[v]) = rows(v)[lane_];
  }

 private:
  static constexpr int kHeads = Config::kHeads, kMembers = 2 * kCtas;
  using Inbox = TeamInbox<kHeads>;
  using Shares = typename Inbox::Shares;
  static constexpr int kShare = (Shares::kVectors + kMembers - 1) / kMembers;
  static constexpr bool kBoth = Inbox::template both_make_room<Shared>(kCtas);
  static_assert(Inbox::bytes(kCtas) + Inbox::all_stat_bytes(kCtas) <= Shared::kOwnBytes);

  // This thread's first vector of what a member sends to a consumer: [consumer][member][of a share][thread].
  __device__ __forceinline__ float4* part(int consumer, int from) const {
    void* const inbox = kBoth || consumer == 0 ? smem_.own_tiles(consumer) : smem_.second_room(Inbox::bytes(kCtas));
    return static_cast<float4*>(inbox) + from * kShare * 128 + warp_ * 32 + lane_;
  }
  // 8 heads of 16 columns of bf16, by lanes.
  __device__ __forceinline__ uint2* rows(int v) const {
    return reinterpret_cast<uint2*>(part(me_, 0) - lane_ + v * 128);
  }

  Shared& smem_;
  int const me_, lane_, warp_, rank_;
  int const first_;  // member that finishes this warp's first share
};

}  // namespace dsa::sm90::decode_few_heads
