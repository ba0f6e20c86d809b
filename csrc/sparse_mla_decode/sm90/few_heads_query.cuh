// Up to 16 heads: a query a CTA, half of its keys for each consumer.
//
//   consumer 0   | ... | O^T += V^T P^T of its last keys | leave O |
//   consumer 1        | ... | O^T += V^T P^T of its last keys | add 0's, and write |
//
// Consumer 0 has its blocks first, and is done half of a pair's time before consumer 1, so consumer 1 finishes all.
// What the two outputs count for it works out while its last products run.
//
//   barrier         arrives                                        waits
//   kSumsAreLeft    consumer 0, when its sums are there (named)    consumer 1, with its own
//   team.received   4 warps of consumer 0, when its output is      consumer 1, before it adds up
#pragma once

#include "few_heads_team_work.cuh"

namespace dsa::sm90::decode_few_heads {

constexpr uint32_t kSumsAreLeft = few_heads::kConsumerBarrier + 2;

// By one thread, before any other touches them.
template <class Shared>
__device__ __forceinline__ void init_query_barriers(Shared& smem) {
  smem.team.received.init(4);
  cutlass::arch::fence_barrier_init();
}

template <class Config, class Shared>
class QueryWork : public PieceWork<Shared> {
 public:
  using PieceWork<Shared>::PieceWork;

  template <class Stats>
  __device__ __forceinline__ void last_products_run(Stats const& stats, int lane, int warp) {
    float sum[kMine], weight[kMine];
    CUTE_UNROLL
    for (int h = 0; h < kMine; ++h) {
      sum[h] = stats.sum[h];
      weight[h] = stats.weight[h];
    }
    auto const plus = [](float a, float b) { return a + b; };
    few_heads::reduce_over_keys(sum, plus);
    few_heads::reduce_over_keys(weight, plus);
    if (lane < 4) {
      few_heads::put_heads(smem_.sum[me_][warp], sum, lane);
      few_heads::put_heads(smem_.weight[me_][warp], weight, lane);
      few_heads::put_heads(smem_.top[me_][warp], stats.reference, lane);
    }
    if (me_ == 0)
      cutlass::arch::NamedBarrier::arrive(256, kSumsAreLeft);
    else
      weigh(lane);
  }

  template <class Stats, class TensorO>
  __device__ __forceinline__ void finish(Stats const&, TensorO const& rO, int lane, int warp) {
    if (me_ == 0)
      leave(rO, lane, warp);
    else
      add_and_write(rO, lane, warp);
  }

 private:
  static constexpr int kHeads = Config::kHeads, kMine = kHeads / 4, kHeadVectors = kHeads / 8;
  using PieceWork<Shared>::params_;
  using PieceWork<Shared>::smem_;
  using PieceWork<Shared>::me_;

  // A thread has so many vectors of two value columns and two heads. Behind consumer 0's come rows that are written.
  static constexpr int kVectors = kValueTiles * kHeadVectors, kLeftBytes = kVectors * 128 * int(sizeof(float4)),
                       kRowBytes = 16 * int(sizeof(bf16));  // a warp's columns of a tile
  static constexpr int kAtOnce = 8;
  static_assert(kVectors % kAtOnce == 0);
  static_assert(kLeftBytes + 4 * kValueTiles * kHeads * kRowBytes <= Shared::kOwnBytes);

  __device__ __forceinline__ float4* left(int v, int lane, int warp) const {
    return static_cast<float4*>(smem_.own_tiles(0)) + v * 128 + warp * 32 + lane;
  }
  // 16 bytes of a row of a warp's [tile][head][16 columns], without bank conflicts for eight heads.
  __device__ __forceinline__ uint4* half_row(int m, int head, int half, int warp) const {
    auto* const rows = reinterpret_cast<uint4*>(static_cast<char*>(smem_.own_tiles(0)) + kLeftBytes);
    return rows + ((warp * kValueTiles + m) * kHeads + head) * 2 + (half ^ (head / 4 & 1));
  }

  // What the outputs of both consumers count for: a lane works it out of one of them and one head.
  __device__ __forceinline__ void weigh(int lane) {
    int const c = lane / kHeads % 2, head = lane % kHeads;
    float const sink =
        (params_.attn_sink != nullptr && head < params_.h_q ? params_.attn_sink[head] : negative_infinity()) * kLog2e;
    cutlass::arch::NamedBarrier::arrive_and_wait(256, kSumsAreLeft);
    float sum = 0.f, weight = 0.f;
    CUTE_UNROLL
    for (int w = 0; w < 4; ++w) {
      sum += smem_.sum[c][w][head];
      weight += smem_.weight[c][w][head];
    }
    float const reference = smem_.top[c][0][head];
    auto const other = [](float x) { return __shfl_xor_sync(~0u, x, kHeads); };
    top_ = exponent_offset(fmaxf(reference, other(reference)));
    float const counted = sum * exp2_approx(reference - top_);
    total_ = counted + other(counted);
    // (As output_scale has it, but for one division, which need not be exact.)
    float const factor = weight == 0.f ? 0.f : __fdividef(counted, weight * (total_ + exp2_approx(sink - top_)));
    CUTE_UNROLL
    for (int i = 0; i < 2; ++i) {
      CUTE_UNROLL
      for (int h = 0; h < kMine; ++h)
        factor_[i][h] = __shfl_sync(~0u, factor, i * kHeads + h / 2 * 8 + lane % 4 * 2 + h % 2);
    }
  }

  template <class TensorO>
  __device__ __forceinline__ void leave(TensorO const& rO, int lane, int warp) {
    cutlass::arch::NamedBarrier::arrive_and_wait(128, few_heads::kConsumerBarrier);  // nobody multiplies its keys
    CUTE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      auto const& o = rO[v / kHeadVectors];
      int const e = v % kHeadVectors * 4;
      *left(v, lane, warp) = make_float4(o(e), o(e + 1), o(e + 2), o(e + 3));
    }
    __syncwarp();
    if (lane == 0) smem_.team.received.arrive();
  }

  template <class TensorO>
  __device__ __forceinline__ void add_and_write(TensorO const& rO, int lane, int warp) {
    TeamPiece const& piece = this->tile();
    int const head = lane / 2, half = lane % 2;
    auto* const out = static_cast<bf16*>(params_.out) + piece.batch * params_.out_stride_batch +
                      piece.token * params_.out_stride_token + head * params_.out_stride_head + warp * 16 + half * 8;
    smem_.team.received.wait(0);
    CUTE_UNROLL
    for (int first = 0; first < kVectors; first += kAtOnce) {
      float4 theirs[kAtOnce];  // (No load passes a store that comes before it.)
      CUTE_UNROLL
      for (int i = 0; i < kAtOnce; ++i) theirs[i] = *left(first + i, lane, warp);
      CUTE_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        int const m = (first + i) / kHeadVectors, e = i % kHeadVectors;
        auto const sum_of = [&](int h, float a, float b) {
          return factor_[0][e * 2 + h] * a + factor_[1][e * 2 + h] * b;
        };
        auto const& o = rO[m];
        few_heads::store_matrices_transposed(
            cast_smem_ptr_to_uint(half_row(m, e * 8 + lane % 8, lane / 8 % 2, warp)),
            pack_bf16(sum_of(0, theirs[i].x, o(e * 4)), sum_of(1, theirs[i].y, o(e * 4 + 1))),
            pack_bf16(sum_of(0, theirs[i].z, o(e * 4 + 2)), sum_of(1, theirs[i].w, o(e * 4 + 3))));
      }
    }
    __syncwarp();
    if (head < params_.h_q) {
      CUTE_UNROLL
      for (int m = 0; m < kValueTiles; ++m)
        *reinterpret_cast<uint4*>(out + m * kTileCols) = *half_row(m, head, half, warp);
    }
    if (warp == 0 && lane < kHeads && lane < params_.h_q)
      params_.lse[int64_t(piece.batch * params_.s_q + piece.token) * params_.h_q + lane] = natural_lse(total_, top_);
  }

  float factor_[2][kMine];  // of this thread's heads
  float total_, top_;       // of the lane's head
};

}  // namespace dsa::sm90::decode_few_heads
