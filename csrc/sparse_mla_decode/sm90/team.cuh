// A query's keys spread over the CTAs of a cluster, its team, for 64 heads: they add up their outputs through shared
// memory, instead of writing parts of a query for a second kernel. Clusters of more than two leave some SMs unused (an
// H200 holds 66 of two, 30 of four, 15 of eight, 7 of sixteen). Where there is room two teams have half of the value
// columns each, and all scores: half of the values to multiply, and half as much to send.
//
// Each CTA of the team finishes an equal share of each warp's columns. At the end of its keys it sends every other's
// share of its output there, divided by its own sum, as the threads hold it, and adds up what comes in the order of the
// ranks: the same bits on every launch. The network between the CTAs gives an SM some 25 bytes a nanosecond, and time
// is what these calls are about, so outputs travel as halves, eight times as fine as the bf16 of the result, with an
// exponent for each row of each tile of 64 columns: so far FP8 keys have scales of their own. (Of a bf16 cache, what is
// 2^33 times smaller than another column of its tile may become 0.) Warps send to the CTAs in different orders
// (first_cta): if all went to the same one at once, sending would take twice as long. Warps without a head send
// nothing. Q and the key buffers make room:
//
//   barrier    arrives                                            waits
//   ready      4 warps of both consumers of all CTAs, when they   consumers, before they send
//              read keys no more
//   received   bytes (one thread expects them from the start)     consumers, before they add up
#pragma once

#include <cuda_fp16.h>

#include <algorithm>

#include "arch/any/cluster.cuh"
#include "arch/sm90/remote.cuh"
#include "attention/sm90/heads64/config.h"
#include "attention/sm90/heads64/softmax.cuh"
#include "team_shares.cuh"
#include "work.cuh"

namespace dsa::sm90 {

template <class Config>
constexpr int kOwnTiles = Config::kOwnV / kTileCols;  // of a consumer's columns

// Of a consumer's columns: vectors of eight halves.
template <class Config>
using ColumnShares = TeamShares<heads64::kBlockH * Config::kOwnV / (128 * 8)>;

__device__ __forceinline__ int first_cta(int consumer, int warp, int team) { return (consumer * 4 + warp) % team; }

__device__ __forceinline__ uint32_t pack_half(float lo, float hi) {
  __half2 const v = __floats2half2_rn(lo, hi);
  return reinterpret_cast<uint32_t const&>(v);
}

// What a rank tells of a row of its output, of either consumer's columns.
struct alignas(8) RowMessage {
  float lse;           // in base 2
  uint32_t exponents;  // a byte for each tile of 64 columns: halves are 2^(141 - exponent) times too large

  // Of a tile whose largest magnitude is `top`, so that halves are below 2^15. (At least 20: below 2^-107 they become
  // smaller, and 0 in the end.)
  static __device__ __forceinline__ uint32_t exponent(float top) {
    return min(max(__float_as_uint(top) >> 23, 20u), 254u);
  }
  static __device__ __forceinline__ float enlarge(uint32_t exponent) { return __uint_as_float((268 - exponent) << 23); }
  __device__ __forceinline__ float reduce(int tile) const {
    return __uint_as_float(((exponents >> tile * 8 & 0xff) - 14) << 23);
  }
};

// What comes from the team: its vectors [rank][consumer][of a share][thread], and of each rank's rows.
template <class Config>
struct TeamInbox {
  // Shares are rounded up.
  uint4 part[2 * std::max(ColumnShares<Config>::kVectors + 4, kLargestTeam) * 128];
  RowMessage row[kLargestTeam][2][heads64::kBlockH];
  // Of this CTA's own making, by either consumer: what rows r and r + 8 of a warp's 16 are multiplied by, of a rank's
  // tile.
  float2 weight[2][kLargestTeam * kOwnTiles<Config>][heads64::kBlockH / 2];

  // Of a consumer's four warps, each of which has 16 heads.
  static __device__ __forceinline__ int warps_with_heads(DecodeParams const& p) {
    return min((p.h_q - DecodeWork::head_of(p) + 15) / 16, 4);
  }
  static __device__ __forceinline__ uint32_t bytes(DecodeParams const& p) {
    ColumnShares<Config> const shares(p.team);
    int const warps = warps_with_heads(p), rank = int(cluster_rank());
    uint32_t bytes = p.team * 2 * warps * 16 * uint32_t(sizeof(RowMessage));
    for (int consumer = 0; consumer < 2; ++consumer)
      for (int warp = 0; warp < warps; ++warp)
        bytes += shares.count(shares.share_of(rank, first_cta(consumer, warp, p.team))) * p.team * 32 *
                 uint32_t(sizeof(uint4));
    return bytes;
  }
};

struct TeamShared {
  Barrier ready, received;
  // The tile (for its end: over the products there are no registers for it).
  int query, head;

  // By one thread, before the team meets.
  __device__ __forceinline__ void init(DecodeParams const& p, uint32_t inbox_bytes) {
    ready.init(p.team * 8);
    received.init(1);
    cutlass::arch::fence_barrier_init();
    received.arrive_and_expect_tx(inbox_bytes);
    query = DecodeWork::part_of(p);
    head = DecodeWork::head_of(p);
  }
};

// Lane l of a quad gets the l-th word of all four.
__device__ __forceinline__ void transpose_in_quad(uint32_t (&words)[4], int lane) {
  CUTE_UNROLL
  for (int step = 1; step <= 2; step *= 2) {
    bool const upper = lane & step;
    CUTE_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (i & step) continue;
      uint32_t& give = words[i];
      uint32_t& keep = words[i + step];
      uint32_t const theirs = __shfl_xor_sync(~0u, upper ? give : keep, step);
      (upper ? give : keep) = theirs;
    }
  }
}

// One thread of a consumer: rows r and r + 8 of its warp's 16, two columns of every eight.
template <class Config, class Shared, int kTeam>
class TeamSum {
 public:
  __device__ __forceinline__ TeamSum(Shared& smem, int me, int lane, int warp)
      : smem_(smem),
        me_(me),
        lane_(lane),
        warp_(warp),
        thread_(warp * 32 + lane),
        rank_(cluster_rank()),
        first_cta_(first_cta(me, warp, kTeam)) {}

  // Once the team's CTAs need Q and their key buffers no more.
  template <class TensorO>
  __device__ __forceinline__ void send(heads64::RowStats const& stats, TensorO const& rO) {
    RowMessage message[2];
    float scale[kTiles][2];
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      bool const empty = stats.sum[r] == 0.f;
      float const own = empty ? 0.f : 1.f / stats.sum[r];
      message[r] = {empty ? negative_infinity() : log2f(stats.sum[r]) + stats.reference[r], 0};
      CUTE_UNROLL
      for (int t = 0; t < kTiles; ++t) {
        float top = 0.f;
        CUTE_UNROLL
        for (int i = 0; i < kTileCols / 2; ++i)
          if (heads64::fragment_row(i) == r) top = fmaxf(top, fabsf(rO(t * kTileCols / 2 + i)));
        CUTE_UNROLL
        for (int mask = 1; mask <= 2; mask *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, mask));
        uint32_t const exponent = RowMessage::exponent(top * own);
        message[r].exponents |= exponent << t * 8;
        scale[t][r] = own * RowMessage::enlarge(exponent);
      }
    }
    send_rows(message);
    CUTE_UNROLL
    for (int share = 0; share < kTeam; ++share) {
      int const to = Shares(kTeam).member_of(share, first_cta_);
      uint32_t const barrier = remote_address(&smem_.team.received, to);
      uint32_t const vectors = remote_address(part(rank_), to);
      CUTE_UNROLL
      for (int v = 0; v < kShare && share * kShare + v < Shares::kVectors; ++v) {
        uint32_t packed[4];
        CUTE_UNROLL
        for (int i = 0; i < 4; ++i) {
          int const e = (share * kShare + v) * 8 + i * 2;
          float const factor = scale[e / (kTileCols / 2)][i % 2];
          packed[i] = pack_half(rO(e) * factor, rO(e + 1) * factor);
        }
        store_remotely(vectors + v * 128 * 16, make_uint4(packed[0], packed[1], packed[2], packed[3]), barrier);
      }
    }
  }

  __device__ __forceinline__ void finish(DecodeParams const& p) {
    wait_for_remote(smem_.team.received, 0);
    int const query = smem_.team.query, first_head = smem_.team.head;
    weigh(p, query, first_head);
    int const share = Shares(kTeam).share_of(int(rank_), first_cta_), count = Shares(kTeam).count(share);
    int const column = me_ * heads64::kHalfV + p.column_cta() * Config::kOwnV + share * kShare * 16;
    // Of a vector's 16 columns and two rows, a lane of four writes eight columns of a row.
    int const out_row = row(lane_ % 2);
    auto* const out = static_cast<__nv_bfloat16*>(p.out) + query / p.s_q * p.out_stride_batch +
                      query % p.s_q * p.out_stride_token + (first_head + out_row) * p.out_stride_head + column +
                      lane_ % 4 / 2 * 8;
    CUTE_UNROLL
    for (int v = 0; v < kShare; ++v) {
      if (v >= count) return;
      int const tile = (share * kShare + v) / kTileVectors;
      float2 acc[4] = {};  // rows r and r + 8 of eight columns, then of the next eight
      CUTE_UNROLL
      for (int from = 0; from < kTeam; ++from) {
        uint4 const theirs = part(from)[v * 128];
        uint32_t const packed[4] = {theirs.x, theirs.y, theirs.z, theirs.w};
        float2 const weight = inbox().weight[me_][from * kTiles + tile][warp_ * 8 + lane_ / 4];
        CUTE_UNROLL
        for (int i = 0; i < 4; ++i) {
          float2 const two = __half22float2(reinterpret_cast<__half2 const&>(packed[i]));
          float const w = i % 2 == 0 ? weight.x : weight.y;
          acc[i].x += w * two.x;
          acc[i].y += w * two.y;
        }
      }
      uint32_t words[4];
      CUTE_UNROLL
      for (int i = 0; i < 4; ++i) words[i] = pack_bf16(acc[i].x, acc[i].y);
      transpose_in_quad(words, lane_);
      if (first_head + out_row < p.h_q)
        *reinterpret_cast<uint4*>(out + v * 16) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }

 private:
  using Inbox = TeamInbox<Config>;
  using Shares = ColumnShares<Config>;
  static constexpr int kTiles = kOwnTiles<Config>, kTileVectors = Shares::kVectors / kTiles;
  static constexpr int kShare = (Shares::kVectors + kTeam - 1) / kTeam;
  static_assert(kShare * kTeam <= std::max(Shares::kVectors + 4, kLargestTeam));

  __device__ __forceinline__ Inbox& inbox() const { return *reinterpret_cast<Inbox*>(smem_.q); }
  // This thread's first vector of what one rank sends.
  __device__ __forceinline__ uint4* part(int from) const {
    return inbox().part + (from * 2 + me_) * kShare * 128 + thread_;
  }
  __device__ __forceinline__ int row(int r) const { return warp_ * 16 + r * 8 + lane_ / 4; }

  // The warp's 16, two to a lane: alone they would take as long as all vectors.
  __device__ __forceinline__ void send_rows(RowMessage const (&message)[2]) {
    int const first_row = lane_ % 8 * 2;
    uint32_t four[4];
    CUTE_UNROLL
    for (int i = 0; i < 2; ++i) {
      int const from = (first_row + i) % 8 * 4;
      CUTE_UNROLL
      for (int field = 0; field < 2; ++field) {
        uint32_t const low =
            __shfl_sync(~0u, field == 0 ? __float_as_uint(message[0].lse) : message[0].exponents, from);
        uint32_t const high =
            __shfl_sync(~0u, field == 0 ? __float_as_uint(message[1].lse) : message[1].exponents, from);
        four[i * 2 + field] = first_row < 8 ? low : high;
      }
    }
#pragma unroll 1
    for (int to = lane_ / 8; to < kTeam; to += 4)
      store_remotely(remote_address(&inbox().row[rank_][me_][warp_ * 16 + first_row], to),
                     make_uint4(four[0], four[1], four[2], four[3]), remote_address(&smem_.team.received, to));
  }

  // What each rank's outputs are multiplied by, for the warp's 16 heads: lanes l and l + 16 have head l, and every
  // other rank. The odd consumer of the first CTA writes the heads' lse.
  __device__ __forceinline__ void weigh(DecodeParams const& p, int query, int first_head) {
    constexpr int kEach = (kTeam + 1) / 2;
    int const row = lane_ % 16, head = first_head + warp_ * 16 + row;
    RowMessage theirs[kEach];
    float weight[kEach], top = negative_infinity(), sum = 0.f;
    CUTE_UNROLL
    for (int i = 0; i < kEach; ++i) {
      int const from = i * 2 + lane_ / 16;
      theirs[i] = from < kTeam ? inbox().row[from][me_][warp_ * 16 + row] : RowMessage{negative_infinity(), 0};
      top = fmaxf(top, theirs[i].lse);
    }
    float const reference = exponent_offset(fmaxf(top, __shfl_xor_sync(~0u, top, 16)));
    CUTE_UNROLL
    for (int i = 0; i < kEach; ++i) {
      weight[i] = exp2f(theirs[i].lse - reference);
      sum += weight[i];
    }
    sum += __shfl_xor_sync(~0u, sum, 16);
    float const sink = p.attn_sink != nullptr && head < p.h_q ? p.attn_sink[head] : negative_infinity();
    float const scale = output_scale(sum, reference, sink);
    CUTE_UNROLL
    for (int i = 0; i < kEach; ++i) {
      int const from = i * 2 + lane_ / 16;
      if (from >= kTeam) break;
      CUTE_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        float2& both = inbox().weight[me_][from * kTiles + tile][warp_ * 8 + row % 8];
        (row < 8 ? both.x : both.y) = weight[i] * scale * theirs[i].reduce(tile);
      }
    }
    if (rank_ == 0 && p.column_cta() == 0 && me_ == heads64::kOdd && lane_ < 16 && head < p.h_q)
      p.lse[int64_t(query) * p.h_q + head] = natural_lse(sum, reference);
    __syncwarp();
  }

  Shared& smem_;
  int const me_, lane_, warp_, thread_;
  uint32_t const rank_;
  int const first_cta_;  // that finishes a share of this warp's
};

}  // namespace dsa::sm90
