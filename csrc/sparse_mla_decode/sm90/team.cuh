// A query's keys spread over the CTAs of a cluster, its team, for 64 heads: they add up their outputs through shared
// memory, instead of writing parts of a query for a second kernel. Clusters of more than two leave some SMs unused (an
// H200 holds 66 of two, 30 of four, 15 of eight, 7 of sixteen). Where there is room two teams have half of the value
// columns each, and all scores: half of the values to multiply, and half as much to send.
//
// Outputs travel as soon as they are there, in equal shares of every warp's columns, to the CTA that finishes them;
// what they count for follows: a consumer tells all CTAs the lse of its keys once it has met the last of them, and a
// CTA knows from all of these what its outputs are multiplied by. Who finishes adds up what comes in a fixed order: the
// same bits on every launch. The network between the CTAs gives an SM some 15 bytes a cycle, and time is what these
// calls are about, so outputs are halves, eight times as fine as the bf16 of the result, with an exponent for each row
// of each tile of 64 columns: so far FP8 keys have scales of their own. (Of a bf16 cache, what is 2^33 times smaller
// than another column of its tile may become 0.) They are copied from the even key buffer, where they are staged, to
// the other CTA's Q: stores from a thread's registers would take longer (16 CTAs: 5780 cycles for 60 KB, not 4170).
// Each warp begins with another CTA. Warps without a head send nothing. Producer warps help to finish.
//
//   barrier    arrives                                             waits
//   free       a producer warp of all CTAs, when their consumers   consumers, before they send outputs
//              read Q no more
//   told       bytes of all lse (one thread expects them)          producers, before they send factors
//   staged     a consumer's warp, when its exponents are known     the producer warp beside it, the same
//   received   of each consumer's warps: bytes of its outputs and  the warp, the producer warp beside it, before they
//              factors from all others; the warp, when it has      add up: so shares that were sent first are finished
//              staged its own                                      first
//   cluster's  all threads, when the CTA's barriers are there      those that reach into others, before
//   the same   producers, when they have received (consumers, at   producers, before they end: what this CTA has sent
//              the latest when they end)                           has been read
#pragma once

#include <cuda_fp16.h>

#include "arch/any/cluster.cuh"
#include "arch/sm90/remote.cuh"
#include "attention/sm90/heads64/softmax.cuh"
#include "team_shared.cuh"

namespace dsa::sm90 {

__device__ __forceinline__ uint32_t pack_half(float lo, float hi) {
  __half2 const v = __floats2half2_rn(lo, hi);
  return reinterpret_cast<uint32_t const&>(v);
}

// Halves of a row's tile whose largest magnitude is `top` are below 2^15: they are enlarged by 2^(141 - exponent). (At
// least 20: below 2^-107 they become smaller, and 0 in the end.)
__device__ __forceinline__ uint32_t half_exponent(float top) { return min(max(__float_as_uint(top) >> 23, 20u), 254u); }
__device__ __forceinline__ float enlarging_factor(uint32_t exponent) { return __uint_as_float((268 - exponent) << 23); }
__device__ __forceinline__ float reducing_factor(uint32_t exponent) { return __uint_as_float((exponent - 14) << 23); }

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

// One thread of a consumer, or of a producer warp that does a consumer warp's work: rows r and r + 8 of its warp's 16,
// two columns of every eight. (Everything here is executed once, in a call of some 20000 cycles: what is independent is
// written side by side, what can be done while something is on its way is done there, and nothing is divided.)
template <class Config, class Shared>
class TeamSum {
 public:
  __device__ __forceinline__ TeamSum(DecodeParams const& params, typename Config::SharedStorage& smem, int me, int lane,
                                     int warp)
      : p_(params), smem_(static_cast<Shared&>(smem)), me_(me), lane_(lane), warp_(warp) {}

  // Tells the team of this consumer's sums: a CTA by four lanes.
  __device__ __forceinline__ void tell(heads64::RowStats const& stats) const {
    cluster_wait();
    if (warp_ >= smem_.team.warps) return;
    float sum[2] = {stats.sum[0], stats.sum[1]}, own[2], four[4];
    over_quad(sum, [](float a, float b) { return a + b; });
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) own[r] = sum[r] == 0.f ? negative_infinity() : log2_approx(sum[r]) + stats.reference[r];
    CUTE_UNROLL
    for (int i = 0; i < 4; ++i) four[i] = __shfl_sync(~0u, own[i % 2], lane_ % 4 * 8 + i / 2 * 4);
    for (int to = lane_ / 4; to < p_.team; to += 8)
      store_remotely(remote_address(lse(rank() * 2 + me_) + lane_ % 4 * 2, to),
                     make_uint4(__float_as_uint(four[0]), __float_as_uint(four[1]), __float_as_uint(four[2]),
                                __float_as_uint(four[3])),
                     remote_address(&smem_.team.told, to));
  }

  // With this CTA's outputs.
  template <class TensorO>
  __device__ __forceinline__ void end(TensorO const& rO) const {
    // All warps of this consumer are done with its halves of the key buffers.
    cutlass::arch::NamedBarrier::arrive_and_wait(128, heads64::kWarpsMeet + me_);
    if (warp_ >= smem_.team.warps) return;
    send(rO);
    finish(0);
  }

  // A producer warp, beside the consumer's.
  __device__ __forceinline__ void help() const {
    cluster_wait();
    if (me_ == 0 && warp_ == 0) {
      cutlass::arch::NamedBarrier::arrive_and_wait(128 + 32, heads64::kQIsFree);
      if (lane_ < p_.team) arrive_remotely(remote_address(&smem_.team.free, lane_));
    }
    if (warp_ >= smem_.team.warps) return;
    send_factors();
    finish(1);
    cluster_arrive_relaxed();
    cluster_wait();
  }

 private:
  using Columns = TeamColumns<Config>;
  using Shares = typename Columns::Shares;
  static constexpr int kVectors = Columns::kVectors, kTiles = Columns::kTiles, kTileVectors = Columns::kTileVectors;
  static_assert(kPartBytes <= Config::kQBytes);

  // All lse of the thread's rows: log2(sum) + offset.
  __device__ __forceinline__ void add_lse(float (&sum)[2], float (&offset)[2]) const {
    constexpr int kEach = 2 * kLargestTeam / 4;
    float all[kEach][2], top[2] = {negative_infinity(), negative_infinity()};
    CUTE_UNROLL
    for (int i = 0; i < kEach; ++i) {
      int const from = i * 4 + lane_ % 4;
      float2 const rows =
          from < 2 * p_.team ? lse(from)[lane_ / 4] : make_float2(negative_infinity(), negative_infinity());
      all[i][0] = rows.x;
      all[i][1] = rows.y;
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r) top[r] = fmaxf(top[r], all[i][r]);
    }
    over_quad(top, [](float a, float b) { return fmaxf(a, b); });
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      offset[r] = exponent_offset(top[r]);
      sum[r] = 0.f;
      CUTE_UNROLL
      for (int i = 0; i < kEach; ++i) sum[r] += exp2_approx(all[i][r] - offset[r]);
    }
    over_quad(sum, [](float a, float b) { return a + b; });
  }

  // Once the team's CTAs need Q no more, and this consumer its halves of the key buffers: a tile after the other, so
  // that the first is on its way early.
  template <class TensorO>
  __device__ __forceinline__ void send(TensorO const& rO) const {
    Shares const shares = Columns::shares(p_);
    // A lane sends the vector of its number.
    int const share = p_.share.div(min(lane_, kVectors - 1)),
              to = shares.member_of(share, first_cta(p_.team, me_, warp_));
    bool const sends = lane_ < kVectors && to != rank();
    uint32_t const address = remote_address(inbox(shares, place(to)) + (lane_ - share * shares.each) * 32, to),
                   barrier = remote_address(&smem_.team.received[me_][warp_], to);
    float scale[kTiles][2];
    find_scales<0, 1>(rO, scale);
    smem_.team.free.wait(0);
    CUTE_UNROLL
    for (int t = 0; t < kTiles; ++t) {
      if (t == 1) {
        find_scales<1, kTiles>(rO, scale);
        __syncwarp();
        if (lane_ == 0) smem_.team.staged[me_][warp_].arrive();
      }
      CUTE_UNROLL
      for (int v = t * kTileVectors; v < (t + 1) * kTileVectors; ++v) {
        uint32_t packed[4];
        CUTE_UNROLL
        for (int i = 0; i < 4; ++i)
          packed[i] = pack_half(rO(v * 8 + i * 2) * scale[t][i % 2], rO(v * 8 + i * 2 + 1) * scale[t][i % 2]);
        outbox(v)[lane_] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
      }
      cutlass::arch::fence_view_async_shared();
      __syncwarp();
      if (sends && lane_ / kTileVectors == t) copy_remotely(address, outbox(lane_), 32 * sizeof(uint4), barrier);
    }
    if (lane_ == 0) smem_.team.received[me_][warp_].arrive();
  }

  // What rows of tiles [kBegin, kEnd) are multiplied by to become halves; the inverse goes to shared memory.
  template <int kBegin, int kEnd, class TensorO>
  __device__ __forceinline__ void find_scales(TensorO const& rO, float (&scale)[kTiles][2]) const {
    float top[(kEnd - kBegin) * 2] = {};
    CUTE_UNROLL
    for (int i = 0; i < (kEnd - kBegin) * kTileCols / 2; ++i) {
      float& largest = top[i / (kTileCols / 2) * 2 + heads64::fragment_row(i)];
      largest = fmaxf(largest, fabsf(rO(kBegin * kTileCols / 2 + i)));
    }
    over_quad(top, [](float a, float b) { return fmaxf(a, b); });
    CUTE_UNROLL
    for (int t = kBegin; t < kEnd; ++t) {
      uint32_t const exponent[2] = {half_exponent(top[(t - kBegin) * 2]), half_exponent(top[(t - kBegin) * 2 + 1])};
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r) scale[t][r] = enlarging_factor(exponent[r]);
      if (lane_ % 4 == 0) reduce(t) = make_float2(reducing_factor(exponent[0]), reducing_factor(exponent[1]));
    }
  }

  // To every CTA, of each tile of its share: four lanes have two rows and their neighbours each. The odd consumer's
  // helpers in the first CTA write the heads' lse, when that is on its way.
  __device__ __forceinline__ void send_factors() const {
    int const head = smem_.team.head + row(0);
    float sink[2];
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      bool const sinks = p_.attn_sink != nullptr && head + r * 8 < p_.h_q;
      sink[r] = (sinks ? p_.attn_sink[head + r * 8] : negative_infinity()) * kLog2e;
    }
    smem_.team.told.wait(0);
    float sum[2], offset[2], mine[2];
    add_lse(sum, offset);
    // An output relative to a reference counts for 2^(reference - offset) times this. (As output_scale has it, but for
    // a division that need not be exact.)
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r)
      mine[r] = sum[r] == 0.f ? 0.f : __fdividef(1.f, sum[r] + exp2_approx(sink[r] - offset[r]));
    smem_.team.staged[me_][warp_].wait(0);
    float const* const references = smem_.reference[heads64::kOdd];  // which the even consumer has adopted
    float2 const its_reduce = reduce(lane_ % kTiles);
    mine[0] *= its_reduce.x * exp2_approx(references[row(0)] - offset[0]);
    mine[1] *= its_reduce.y * exp2_approx(references[row(1)] - offset[1]);

    Shares const shares = Columns::shares(p_);
    int const two = Columns::most_tiles(shares) - 1, quarter = lane_ % 4, tile = lane_ >> 2 & two,
              first = first_cta(p_.team, me_, warp_);
    for (int begin = 0; begin < p_.team; begin += 8 >> two) {
      int const to = begin + (lane_ >> (2 + two));
      int const column_tile =
          to < p_.team ? min(Columns::first_tile(shares, shares.share_of(to, first)) + tile, kTiles - 1) : 0;
      float four[4];
      CUTE_UNROLL
      for (int i = 0; i < 4; ++i) four[i] = __shfl_sync(~0u, mine[i % 2], (quarter * 2 + i / 2) * 4 + column_tile);
      if (to < p_.team)
        store_remotely(remote_address(factors(two, place(to), tile) + quarter * 2, to),
                       make_uint4(__float_as_uint(four[0]), __float_as_uint(four[1]), __float_as_uint(four[2]),
                                  __float_as_uint(four[3])),
                       remote_address(&smem_.team.received[me_][warp_], to));
    }
    if (rank() == 0 && smem_.team.column_cta == 0 && me_ == heads64::kOdd && lane_ % 4 == 0) {
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r)
        if (head + r * 8 < p_.h_q)
          p_.lse[int64_t(smem_.team.query) * p_.h_q + head + r * 8] = natural_lse(sum[r], offset[r]);
    }
  }

  // Every other vector of the share, from `begin` on.
  __device__ __forceinline__ void finish(int begin) const {
    Shares const shares = Columns::shares(p_);
    int const share = shares.share_of(rank(), first_cta(p_.team, me_, warp_)), first = share * shares.each,
              count = shares.count(share), first_tile = Columns::first_tile(shares, share),
              two = Columns::most_tiles(shares) - 1;
    // Of a vector's 16 columns and two rows, a lane of four writes eight columns of a row.
    int const head = smem_.team.head + row(lane_ % 2);
    int batch, token;
    p_.tokens(batch, token, smem_.team.query);
    auto* const out = static_cast<__nv_bfloat16*>(p_.out) + batch * p_.out_stride_batch + token * p_.out_stride_token +
                      head * p_.out_stride_head + me_ * heads64::kHalfV + smem_.team.column_cta * Config::kOwnV +
                      lane_ % 4 / 2 * 8;
    smem_.team.received[me_][warp_].wait(0);
    int const others = p_.team - 1;
    for (int v = begin; v < count; v += 2) {
      int const tile = (first + v) / kTileVectors - first_tile;
      float2 acc[4] = {};  // rows r and r + 8 of eight columns, then of the next eight
      add(acc, outbox(first + v)[lane_], factors(two, others, tile)[lane_ / 4]);
      // Several at once, from a place on.
      auto const* from = inbox(shares, 0) + v * 32 + lane_;
      auto const* factor = factors(two, 0, tile) + lane_ / 4;
      int const step = int(inbox(shares, 1) - inbox(shares, 0)),
                factor_step = int(factors(two, 1, 0) - factors(two, 0, 0));
      auto const add_next = [&](auto count) {
        constexpr int kCount = decltype(count)::value;
        uint4 halves[kCount];
        float2 f[kCount];
        CUTE_UNROLL
        for (int i = 0; i < kCount; ++i, from += step, factor += factor_step) {
          halves[i] = *from;
          f[i] = *factor;
        }
        CUTE_UNROLL
        for (int i = 0; i < kCount; ++i) add(acc, halves[i], f[i]);
      };
      int left = others;
#pragma unroll 1
      for (; left >= 4; left -= 4) add_next(Int<4>{});
      if (left == 3)
        add_next(Int<3>{});
      else if (left == 2)
        add_next(Int<2>{});
      else if (left == 1)
        add_next(Int<1>{});
      uint32_t words[4];
      CUTE_UNROLL
      for (int i = 0; i < 4; ++i) words[i] = pack_bf16(acc[i].x, acc[i].y);
      transpose_in_quad(words, lane_);
      if (head < p_.h_q)
        *reinterpret_cast<uint4*>(out + (first + v) * 16) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }

  __device__ __forceinline__ int rank() const { return smem_.team.rank; }
  __device__ __forceinline__ int row(int r) const { return warp_ * 16 + r * 8 + lane_ / 4; }

  template <int kCount, class Op>
  static __device__ __forceinline__ void over_quad(float (&x)[kCount], Op op) {
    CUTE_UNROLL
    for (int mask = 1; mask <= 2; mask *= 2) {
      CUTE_UNROLL
      for (int i = 0; i < kCount; ++i) x[i] = op(x[i], __shfl_xor_sync(~0u, x[i], mask));
    }
  }

  // This CTA's place among those that send to another; the own one is the last.
  __device__ __forceinline__ int place(int to) const {
    int const own = rank();
    return to == own ? p_.team - 1 : own < to ? own : own - 1;
  }

  // A warp's output, a vector of all lanes after the other: all of it where it is staged, its share in the inbox.
  __device__ __forceinline__ uint4* outbox(int vector) const {
    auto* const half = reinterpret_cast<uint4*>(smem_.k[0] + me_ * heads64::kHalfTiles * kTileElements);
    return half + (warp_ * kVectors + vector) * 32;
  }
  __device__ __forceinline__ uint4* inbox(Shares const& shares, int place) const {
    return reinterpret_cast<uint4*>(smem_.q) + ((place * 2 + me_) * 4 + warp_) * shares.each * 32;
  }
  // What rows r and r + 8 of a staged tile are to be multiplied by.
  __device__ __forceinline__ float2& reduce(int tile) const {
    auto* const half = reinterpret_cast<float2*>(smem_.k[1] + me_ * heads64::kHalfTiles * kTileElements);
    return half[(warp_ * kTiles + tile) * 8 + lane_ / 4];
  }
  __device__ __forceinline__ float2* lse(int member) const {
    if constexpr (kFactorsFitQ<Config>)
      return smem_.mail.of[member][warp_];
    else
      return smem_.mail.lse.of[member][warp_];
  }
  __device__ __forceinline__ float2* factors(int two, int place, int tile) const {
    TeamFactors* all;
    if constexpr (kFactorsFitQ<Config>)
      all = reinterpret_cast<TeamFactors*>(reinterpret_cast<char*>(smem_.q) + kPartBytes);
    else
      all = &smem_.mail.factors;
    return all->of[(place << two) + tile][me_][warp_];
  }

  static __device__ __forceinline__ void add(float2 (&acc)[4], uint4 const& halves, float2 const& factor) {
    uint32_t const packed[4] = {halves.x, halves.y, halves.z, halves.w};
    CUTE_UNROLL
    for (int i = 0; i < 4; ++i) {
      float2 const two = __half22float2(reinterpret_cast<__half2 const&>(packed[i]));
      float const f = i % 2 == 0 ? factor.x : factor.y;
      acc[i].x += f * two.x;
      acc[i].y += f * two.y;
    }
  }

  DecodeParams const& p_;
  Shared& smem_;
  int const me_, lane_, warp_;
};

}  // namespace dsa::sm90
