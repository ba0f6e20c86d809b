// A consumer warpgroup: products of keys and a slab of Q, and what becomes of them.
//
//   logit[t, s] = scale[t] * sum_h relu(x[t, (s, h)]) * w[s, h]
//
// relu(x) * w is (x + |x|) * (w / 2), bit for bit: an addition and a multiply-add, which the card issues at twice the
// rate of a maximum. A lane holds two keys and, of every eight columns, two; its weights stay in registers as long as
// the slab does. The four lanes of a quad add up what they have by exchanging halves, so that each ends with its own
// key and queries: three shuffles for 64 heads.
#pragma once

#include <cuda_bf16.h>

#include "arch/sm90/mma.cuh"
#include "config.h"

namespace dsa::sm90::indexer_logits {

// kSplitQueries: how the two consumers share the work (kernel.cuh).
template <class Config, bool kSplitQueries>
struct Consumer {
  static constexpr int kHeads = Config::kHeads, kTokens = Config::kTokens, kColumns = Config::kColumns;
  static constexpr int kMine = kTokens > 1 ? kTokens / 2 : 1;  // queries whose logits a lane ends with
  static constexpr int kStages = Config::kStages;
  using Shared = typename Config::SharedStorage;
  using Frag = decltype(partition_fragment_C(typename Config::Mma{}, Shape<Int<kHalf>, Int<kColumns>>{}));

  // One product, of half of a tile, and what must be known when it is done.
  struct Step {
    bool computes;  // else it is a bubble, or the end: the product is made of whatever is there, and ignored
    bool ends_work;
    bool new_slab;  // its weights are not in registers yet
    bool ends_tile, ends_unit;
    bool valid;  // this lane's key is in the cache
    int stage, half, buffer, slab;
    int key;  // this lane's
    float scale;
  };

  IndexerQueries const& queries;
  QBuffers const ring;
  Shared& smem;
  int const me, thread, warp, lane;
  int const row;      // of this lane's key in a half
  int const my_side;  // which half of a slab's queries this lane ends with

  // Where the next step is: in which of the unit's tiles that are this consumer's, and with which slab.
  int tile, tiles = 0, sub = 0, key = 0, stage, buffer = -1;
  uint32_t phase = 0, q_phase = 0;
  bool drained = true, new_unit = false, bubble = false, ended = false;
  // Of the slab that the last finished step belongs to.
  float weight[kColumns / 4];
  Range range[kMine];
  int64_t out;
  int tokens;  // that exist, of this lane's

  __device__ __forceinline__ Consumer(IndexerQueries const& queries, QBuffers ring, Shared& smem, int me)
      : queries(queries),
        ring(ring),
        smem(smem),
        me(me),
        thread(threadIdx.x % 128),
        warp(__shfl_sync(~0u, threadIdx.x % 128 / 32, 0)),
        lane(threadIdx.x % 32),
        row(warp * 16 + lane % 2 * 8 + lane / 4),
        my_side(lane / 2 % 2),
        tile(kSplitQueries ? 0 : me),
        stage(tile) {}

  __device__ __forceinline__ void run() {
    // One product is in flight, while the one before is worked on; the other consumer's fills the gap between two.
    // (Two in flight, of which one crosses the loop's end, the compiler serialises.)
    Frag even, odd;
    Step step = next<0>(), following;
    if (step.ends_work) return;
    multiply(even, step);
#pragma unroll 1
    do {
      following = next<1>();
      wait_for(even);
      multiply(odd, following);
      finish(even, step);
      step = next<0>();
      wait_for(odd);
      multiply(even, step);
      finish(odd, following);
    } while (!step.ends_work);
    warpgroup_wait<0>();
  }

 private:
  static constexpr int kTileStep = kSplitQueries ? 1 : 2;  // from one of this consumer's tiles to the next
  static_assert(kStages % kTileStep == 0);                 // so that its stages are its own

  // Waits for the step's operands, and reads what belongs to this lane's key. The halves of a tile come by turns:
  // kTurn. Of the flags many are constants then.
  template <int kTurn>
  __device__ __forceinline__ Step next() {
    Step s{};
    bool const begins_tile = kTurn == 0 && (kSplitQueries || sub == 0);
    if (kTurn == 1 && !kSplitQueries && bubble) {
      bubble = false;
      return s;
    }
    if (begins_tile && tile >= tiles) {
      for (int opened = 1; !ended && tile >= tiles; ++opened) {
        // The last step is not finished yet, and keeps its unit in the ring: what comes after one round would never
        // come.
        if (!kSplitQueries && !drained && opened == ring.buffers) {
          drained = bubble = true;
          return s;
        }
        open_unit();
      }
      s.ends_work = ended;
      if (ended) return s;
      drained = false;
      new_unit = true;
    }
    if (begins_tile) smem.full[stage].wait(phase);
    s.computes = true;
    s.new_slab = kTurn == 0 && (begins_tile && new_unit || !kSplitQueries && ring.slabs > 1);
    if (begins_tile) new_unit = false;
    s.stage = stage;
    s.half = kTurn;
    s.buffer = buffer;
    s.slab = ring.slab(buffer, kSplitQueries ? me : sub);
    int const at = s.half * kHalf + row;
    s.key = key + at;
    s.scale = smem.scale[stage][at];
    // Keys that are not in pages are all there.
    s.valid = kSplitQueries || (smem.valid[stage] >> (unsigned(at) / kGroupKeys) & 1);
    if (kTurn == 1 && (kSplitQueries || ++sub == ring.slabs)) {
      s.ends_tile = true;
      sub = 0;
      tile += kTileStep;
      s.ends_unit = tile >= tiles;
      key += kTileStep * kTileKeys;
      if ((stage += kTileStep) >= kStages) {
        stage -= kStages;
        phase ^= 1;
      }
    }
    return s;
  }

  // A unit may have no tile for this consumer: where they go by turns, they do so across units.
  __device__ __forceinline__ void open_unit() {
    tile = (tile - tiles) % kTileStep;
    if (++buffer == ring.buffers) {
      buffer = 0;
      q_phase ^= 1;
    }
    smem.q_full[buffer].wait(q_phase);
    tiles = __shfl_sync(~0u, smem.unit[buffer].tiles, 0);
    key = smem.unit[buffer].first_key + tile * kTileKeys;
    ended = tiles == 0;
    if (!ended && tile >= tiles) release(smem.q_empty[buffer]);
  }

  __device__ __forceinline__ void multiply(Frag& acc, Step const& s) {
    warpgroup_fence_operand(acc);
    warpgroup_arrive();
    mma_ss(typename Config::Mma{},
           make_tensor(make_smem_ptr(opaque(smem.keys[s.stage] + s.half * kHalf * Config::kDim)),
                       typename Config::KeyLayout{}),
           make_tensor(make_smem_ptr(opaque(smem.q[s.slab])), typename Config::QLayout{}), acc, thread, true);
    warpgroup_commit_batch();
  }

  __device__ __forceinline__ void wait_for(Frag& acc) {
    warpgroup_wait<0>();
    warpgroup_fence_operand(acc);
  }

  __device__ __forceinline__ void finish(Frag const& acc, Step const& s) {
    if (!kSplitQueries && !s.computes) return;
    if (s.ends_tile) release(smem.empty[s.stage]);
    if (s.new_slab) load_slab(s);
    if (s.ends_unit) release(smem.q_empty[s.buffer]);
    for_each(make_seq<kMine>{}, [&](auto p) {
      constexpr int kP = decltype(p)::value;
      float const logit = sum_heads<kP>(acc) * s.scale;
      bool const sees = s.valid && s.key >= range[kP].start && s.key < range[kP].end;
      if (kP < tokens && s.key < queries.columns) store(kP, s.key, sees ? logit : __uint_as_float(0xff800000));
    });
  }

  __device__ __forceinline__ void release(Barrier& barrier) {
    __syncwarp();  // all lanes have read what they need
    if (lane == 0) barrier.arrive();
  }

  __device__ __forceinline__ void load_slab(Step const& s) {
    int const slab_of_unit = s.slab - ring.slab(s.buffer, 0), first = my_side * kMine;
    bool const repeats = kTokens == 1 && my_side == 1;  // what the quad's other lanes end with
    tokens = repeats ? 0 : smem.unit[s.buffer].tokens - slab_of_unit * kTokens - first;
    CUTE_UNROLL
    for (int j = 0; j < kColumns / 8; ++j) {
      float2 const w = *reinterpret_cast<float2 const*>(&smem.weight[s.slab][8 * j + lane % 4 * 2]);
      weight[2 * j] = 0.5f * w.x;
      weight[2 * j + 1] = 0.5f * w.y;
    }
    CUTE_UNROLL
    for (int p = 0; p < kMine; ++p) range[p] = smem.range[s.slab][kTokens > 1 ? first + p : 0];
    out = smem.unit[s.buffer].out + int64_t(slab_of_unit * kTokens + first) * queries.out_stride_token;
  }

  // Of this lane's key and query kP: adds up the columns, over the quad.
  template <int kP>
  __device__ __forceinline__ float sum_heads(Frag const& acc) const {
    float mine[2];  // of queries kP and kMine + kP; of this lane's key
    CUTE_UNROLL
    for (int side = 0; side < (kTokens > 1 ? 2 : 1); ++side) {
      float sum[2] = {0.f, 0.f};  // of keys lane / 4 and 8 + lane / 4
      CUTE_UNROLL
      for (int j = 0; j < kHeads / 8; ++j) {
        int const group = (side * kMine + kP) * (kHeads / 8) + j;
        CUTE_UNROLL
        for (int i = 0; i < 4; ++i) {
          float const x = acc(4 * group + i);
          sum[i / 2] = fmaf(x + fabsf(x), weight[2 * group + i % 2], sum[i / 2]);
        }
      }
      bool const second = lane % 2;
      mine[side] = (second ? sum[1] : sum[0]) + __shfl_xor_sync(~0u, second ? sum[0] : sum[1], 1);
    }
    if constexpr (kTokens == 1)
      return mine[0] + __shfl_xor_sync(~0u, mine[0], 2);
    else
      return (my_side ? mine[1] : mine[0]) + __shfl_xor_sync(~0u, my_side ? mine[0] : mine[1], 2);
  }

  __device__ __forceinline__ void store(int p, int column, float value) const {
    int64_t const at = out + p * queries.out_stride_token + column;
    if (queries.out_bf16)
      static_cast<__nv_bfloat16*>(queries.out)[at] = __float2bfloat16_rn(value);
    else
      static_cast<float*>(queries.out)[at] = value;
  }
};

}  // namespace dsa::sm90::indexer_logits
