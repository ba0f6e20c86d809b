// A warpgroup that sums: what becomes of the products.
//
//   logit[t, s] = scale[t] * sum_h relu(x[t, (s, h)]) * w[s, h]
//
// A thread has a key, and its columns one after another: nothing is exchanged. relu(x) * w is (x + |x|) * (w / 2), bit
// for bit. Half of the columns take the one form, an addition and a multiply-add, half the other, whose maximum runs
// beside them on another unit; multiply-adds go two at a time (fma.rn.f32x2), which saves issue slots. The weights of a
// part stay in registers as long as the block of queries does: from shared memory, they would take what its port has
// left beside the products.
#pragma once

#include <cuda_bf16.h>

#include <cute/arch/simd_sm100.hpp>

#include "config.h"

namespace dsa::sm100::indexer_logits {

template <class Config>
struct Sums {
  static constexpr int kHeads = Config::kHeads, kStages = Config::kStages;
  static constexpr int kPartTokens = Config::kPartTokens;
  static constexpr int kChunks = kPartColumns / kLoadColumns;
  using Shared = typename Config::SharedStorage;

  IndexerQueries const& queries;
  Split const split;
  Shared& smem;
  int const lane;
  int const log2_box;
  int const row;  // of this thread's key in a tile
  int const part, turn;
  uint32_t const tmem;  // this warp's lanes, first column

  float2 weight[kPartColumns / 2];  // of columns 0, 1 modulo 4 halved

  __device__ __forceinline__ Sums(IndexerQueries const& queries, Split split, Shared& smem, int group, int log2_box)
      : queries(queries),
        split(split),
        smem(smem),
        lane(threadIdx.x % 32),
        log2_box(log2_box),
        row(threadIdx.x % 128),
        part(group & (split.parts() - 1)),
        turn(group >> split.log2_parts),
        tmem(smem.tmem + tmem_lane_of_warp()) {}

  __device__ __forceinline__ void run() {
    int done = 0;  // tiles
    for (RingPlace<Config::kUnits> place{.phase = 0};; place.advance()) {
      smem.q_full[place.index].wait(place.phase);
      Unit const& unit = smem.unit[place.index];
      int const tiles = unit.tiles;
      if (tiles == 0) return;
      load_weights(smem.weight[place.index]);
      int const first = part * kPartTokens, tokens = min(unit.tokens - first, kPartTokens);
      int const turns = split.turns();
#pragma unroll 1
      for (int t = (turn - done) & (turns - 1); t < tiles; t += turns)
        sum_tile(done + t, unit.first_key + t * kTileKeys, unit.out + first * queries.out_stride_token,
                 &smem.range[place.index][first], tokens);
      release(smem.q_empty[place.index]);
      done += tiles;
    }
  }

 private:
  __device__ __forceinline__ void load_weights(float const* of_unit) {
    CUTE_UNROLL
    for (int c = 0; c < kPartColumns; c += 4) {
      float4 const w = *reinterpret_cast<float4 const*>(&of_unit[part * kPartColumns + c]);
      weight[c / 2] = {0.5f * w.x, 0.5f * w.y};
      weight[c / 2 + 1] = {w.z, w.w};
    }
  }

  __device__ __forceinline__ void release(Barrier& barrier) {
    __syncwarp();  // all lanes have read what they need
    if (lane == 0) barrier.arrive();
  }

  // `tokens` are this part's; 0 or fewer: none, and what is summed is stored nowhere.
  __device__ __forceinline__ void sum_tile(int n, int first_key, int64_t out, Range const* range, int tokens) {
    int const stage = n % kStages, slot = split.slot(n);
    smem.full[stage].wait(n / kStages & 1);
    float const scale = smem.scale[stage][row];
    bool const valid = smem.valid[stage] >> (row >> log2_box) & 1;
    release(smem.empty[stage]);
    int const key = first_key + row;

    smem.acc_full[slot].wait(split.parity(n));
    after_tmem_handover();
    uint32_t const columns = tmem + slot * split.columns() + part * kPartColumns;
    int const chunks = (max(tokens, 1) * kHeads - 1) / kLoadColumns + 1;
    float2 sum[2];  // of columns 0, 1 and of 2, 3 modulo 4
    for_each(make_seq<kChunks>{}, [&](auto chunk) {
      constexpr int kChunk = decltype(chunk)::value;
      if (kChunk >= chunks) return;
      uint32_t x[kLoadColumns];
      load_tmem(columns + kChunk * kLoadColumns, x);
      wait_for_tmem_loads(x);
      // The last one is one that a token ends in.
      if constexpr ((kChunk + 1) * kLoadColumns / kHeads > kChunk * kLoadColumns / kHeads)
        if (kChunk + 1 == chunks) {
          before_tmem_handover();
          release(smem.acc_empty[slot]);
        }
      CUTE_UNROLL
      for (int c = 0; c < kLoadColumns; c += 4) {
        int const column = kChunk * kLoadColumns + c, token = column / kHeads;
        if (column % kHeads == 0) sum[0] = sum[1] = {0.f, 0.f};
        fma(sum[0], {twice_relu(x[c]), twice_relu(x[c + 1])}, weight[column / 2], sum[0]);
        fma(sum[1], {relu(x[c + 2]), relu(x[c + 3])}, weight[column / 2 + 1], sum[1]);
        if ((column + 4) % kHeads == 0 && token < tokens && key < queries.columns) {
          float const logit = ((sum[0].x + sum[0].y) + (sum[1].x + sum[1].y)) * scale;
          bool const sees = valid && key >= range[token].start && key < range[token].end;
          store(out + token * queries.out_stride_token + key, sees ? logit : __uint_as_float(0xff800000));
        }
      }
    });
  }

  // NaN stays NaN in both.
  static __device__ __forceinline__ float twice_relu(uint32_t bits) {
    float const x = __uint_as_float(bits);
    return x + fabsf(x);
  }
  static __device__ __forceinline__ float relu(uint32_t bits) {
    float positive;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(positive) : "f"(__uint_as_float(bits)));
    return positive;
  }

  __device__ __forceinline__ void store(int64_t at, float value) const {
    if (queries.out_bf16)
      static_cast<__nv_bfloat16*>(queries.out)[at] = __float2bfloat16_rn(value);
    else
      static_cast<float*>(queries.out)[at] = value;
  }
};

}  // namespace dsa::sm100::indexer_logits
