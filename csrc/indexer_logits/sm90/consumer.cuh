// A consumer warpgroup: products of 64 keys and a slab of Q, and what becomes of them.
//
//   logit[t, s] = scale[t] * sum_h relu(x[t, (s, h)]) * w[s, h]
//
// relu(x) * w is (x + |x|) * (w / 2), bit for bit: an addition and a multiply-add, which the card issues at twice the
// rate of a maximum. With 32 or 64 heads only |x| * (w / 2) is added up; the other half is in columns of its own
// (linear.cuh). A lane holds two keys and, of every eight columns, two; its weights stay in registers as long as the
// slab does. The four lanes of a quad add up what they have by exchanging halves, so that each ends with its own key
// and queries: three shuffles for 64 heads.
//
// What goes through shared memory's port, shuffles included, waits for products, which read it three cycles of four.
// So a product's last sums, its scale and its range are seen to while the next one runs.
#pragma once

#include <cuda_bf16.h>

#include "arch/sm90/mma.cuh"
#include "config.h"
#include "linear.cuh"
#include "operands.cuh"

namespace dsa::sm90::indexer_logits {

template <class Config, class Ranges>
struct Consumer {
  static constexpr bool kSplitQueries = split_queries<Ranges>;  // how the consumers share the work (kernel.cuh)
  static constexpr int kHeads = Config::kHeads, kTokens = Config::kTokens, kColumns = Config::kColumns;
  static constexpr int kSides = kTokens > 1 ? 2 : 1;
  static constexpr int kMine = kTokens / kSides;   // queries whose logits a lane ends with
  static constexpr bool kKeepRanges = kMine <= 2;  // in registers; more would be spilled
  static constexpr bool kKeepOperands = !kSplitQueries && kColumns == 128;
  static constexpr bool kLinear = Config::kLinear;
  static constexpr int kTileStep = turns_of(kSplitQueries);  // from one of this consumer's tiles to the next
  using Shared = typename Config::SharedStorage;
  using Frag = decltype(partition_fragment_C(typename Config::Mma{}, Shape<Int<kHalf>, Int<Config::kRows>>{}));

  // Of a query: the keys that it sees, and how many have a place in the result, if the query has.
  struct Seen {
    int start;
    uint32_t count;
    int columns;
  };

  // A product of which the quad's lanes have still to add up what they have, of queries p and p + kMine.
  struct Partial {
    float kept[kMine][kSides], received[kMine][kSides];
    float scale;
    bool valid;  // this lane's key is in the cache
  };

  IndexerQueries const& queries;
  Ranges const& ranges;
  Rings const rings;
  Shared& smem;
  int const me, log2_box, thread, lane;
  int const row;      // of this lane's key in a half
  int const my_side;  // which half of a slab's queries this lane ends with
  int const kept_out_bytes;
  float const linear_factor;  // of the pieces in this lane's columns

  // Of a slab: its weights, halved, and their units; how many of this lane's queries exist, and what each sees.
  float weight[kColumns / 4];
  float unit_weight[kLinear ? kMine : 1];
  int tokens;
  int token;           // of the first of them
  Range const* range;  // as the caller gave it
  Seen kept_seen[kKeepRanges ? kMine : 1];
  // Of the product that is finished next: this lane's key, and where its first query's logit belongs.
  int key;
  char* out;

  __device__ __forceinline__ Consumer(IndexerQueries const& queries, Ranges const& ranges, Rings rings, Shared& smem,
                                      int me, int log2_box)
      : queries(queries),
        ranges(ranges),
        rings(rings),
        smem(smem),
        me(me),
        log2_box(log2_box),
        thread(threadIdx.x % 128),
        lane(threadIdx.x % 32),
        row(thread / 32 * 16 + lane % 2 * 8 + lane / 4),
        my_side(lane / 2 % 2),
        kept_out_bytes(queries.out_bf16 ? 2 : 4),
        linear_factor(power_of_two(-4 * (lane % 4))) {}

  __device__ __forceinline__ void run() {
    int stage = kSplitQueries ? 0 : me, tile = stage, buffer = 0;
    uint32_t phase = 0, q_phase = 0;
    smem.q_full[0].wait(0);
    if (me == 0) cutlass::arch::NamedBarrier::arrive(kFirstUnitThreads<Config, Ranges>, kFirstUnitLoaded);
    while (true) {
      smem.q_full[buffer].wait(q_phase);
      int const tiles = __shfl_sync(~0u, smem.unit[buffer].tiles, 0);
      if (tiles == 0) return;
      if constexpr (kLinear) write_linear_half(buffer);
      // (Narrow slabs are used alone.)
      if (kSplitQueries || (kKeepRanges && (kColumns < 128 || rings.slabs == 1)))
        multiply_slab(buffer, tiles, tile, stage, phase);
      else
        multiply_slabs(buffer, tiles, tile, stage, phase);
      // A unit may have no tile for this consumer: where they go by turns, they do so across units.
      tile -= tiles;
      release(smem.q_empty[buffer]);
      if (++buffer == rings.buffers) {
        buffer = 0;
        q_phase ^= 1;
      }
    }
  }

 private:
  // Before a unit's products: each consumer for its own slab, or all for all slabs.
  __device__ __forceinline__ void write_linear_half(int buffer) {
    constexpr int kWarps = kSplitQueries ? 4 : kConsumerWarps;
    using Linear = LinearHalf<Config, kSplitQueries ? 8 * kTokens : 8>;  // an item for each of four warps, or of eight
    int const first_slab = rings.slab(buffer, kSplitQueries ? me : 0);
    int const items = (kSplitQueries ? 1 : rings.slabs) * Linear::kItems;
    auto const wait_for_others = [&] {
      cutlass::arch::NamedBarrier::sync(32 * kWarps, kLinearHalf + (kSplitQueries ? me : 0));
    };
#pragma unroll 1
    for (int first = 0; first < items; first += kWarps) {
      int const i = first + thread / 32 + (kSplitQueries ? 0 : 4 * me);
      auto* const q = reinterpret_cast<uint8_t*>(smem.q(rings, 0));
      Linear linear = {smem, q, lane, first_slab + i / Linear::kItems, i % Linear::kItems};
      if (i < items) linear.add();
      wait_for_others();
      if (i < items) linear.write();
    }
    cutlass::arch::fence_view_async_shared();  // tensor cores will read it
    wait_for_others();
  }

  // A unit of which this consumer has one slab: its weights and ranges stay in registers.
  __device__ __forceinline__ void multiply_slab(int buffer, int tiles, int& tile, int& stage, uint32_t& phase) {
    int const slab_of_unit = kSplitQueries ? me : 0, slab = rings.slab(buffer, slab_of_unit);
    load_slab(buffer, slab_of_unit, tile);
    [[maybe_unused]] Operands<Config> operands(smem.keys(0), smem.q(rings, 0), 2 * stage, slab, thread);
    Partial last;
    bool pending = false;
#pragma unroll 1
    for (; tile < tiles; tile += kTileStep) {
      smem.full[stage].wait(phase);
      int const now = stage;
      if constexpr (kKeepOperands) advance(stage, phase);
#pragma unroll 1
      for (int half = 0; half < 2; ++half) {
        Frag acc;
        multiply(acc, [&] {
          if constexpr (kKeepOperands)
            operands.multiply(acc);
          else
            multiply(acc, 2 * now + half, slab);
        });
        if (pending) finish(last, half == 1 ? kHalf : kTileStep * kTileKeys - kHalf);
        pending = true;
        warpgroup_wait<0>();
        warpgroup_fence_operand(acc);
        read_scale(last, now, half);  // (It comes while columns are added: 0.5 % of a paged call.)
        if constexpr (kKeepOperands) operands.move_keys(half == 0 ? 1 : 2 * (stage - now) - 1);
        if (half == 1) release(smem.empty[now]);
        add_columns(acc, last);
      }
      if constexpr (!kKeepOperands) advance(stage, phase);
    }
    if (pending) finish(last, 0);
  }

  // A unit of several slabs, which are loaded anew for every tile; or any, where registers are few.
  __device__ __forceinline__ void multiply_slabs(int buffer, int tiles, int& tile, int& stage, uint32_t& phase) {
    bool const several = kKeepRanges || rings.slabs > 1;
    if (!several) load_slab(buffer, 0, tile);
    Partial last;
    bool pending = false;
#pragma unroll 1
    for (; tile < tiles; tile += kTileStep) {
      smem.full[stage].wait(phase);
#pragma unroll 1
      for (int step = 0; step < 2 * rings.slabs; ++step) {
        int const half = step % 2, slab = step / 2;
        Frag acc;
        multiply(acc, [&] { multiply(acc, 2 * stage + half, rings.slab(buffer, slab)); });
        if (pending) finish(last, half == 1 ? kHalf : kTileStep * kTileKeys - kHalf);
        pending = true;
        if (half == 0 && several) load_slab(buffer, slab, tile);
        read_scale(last, stage, half);
        warpgroup_wait<0>();
        warpgroup_fence_operand(acc);
        if (step == 2 * rings.slabs - 1) release(smem.empty[stage]);
        add_columns(acc, last);
      }
      advance(stage, phase);
    }
    if (pending) finish(last, 0);
  }

  __device__ __forceinline__ void advance(int& stage, uint32_t& phase) const {
    if ((stage += kTileStep) < rings.stages) return;
    stage -= rings.stages;
    phase ^= 1;
  }

  __device__ __forceinline__ void read_scale(Partial& to, int stage, int half) const {
    int const at = half * kHalf + row;
    to.scale = smem.scale[stage][at];
    // Keys that are not in pages are all there.
    to.valid = kSplitQueries || (smem.valid[stage] >> (at >> log2_box) & 1);
  }

  // A product of what `instructions` multiplies.
  template <class Instructions>
  __device__ __forceinline__ void multiply(Frag& acc, Instructions const& instructions) {
    warpgroup_fence_operand(acc);
    warpgroup_arrive();
    instructions();
    warpgroup_commit_batch();
  }
  __device__ __forceinline__ void multiply(Frag& acc, int half, int slab) {
    typename Config::Mma mma;
    auto const slice = mma.get_slice(thread);
    auto const keys = slice.partition_fragment_A(
        make_tensor(make_smem_ptr(smem.keys(0)), typename Config::KeyLayout{}))(_, _, _, half);
    auto const q = slice.partition_fragment_B(make_tensor(make_smem_ptr(smem.q(rings, 0)), typename Config::QLayout{}))(
        _, _, _, slab);
    mma.accumulate_ = GMMA::ScaleOut::Zero;
    CUTE_UNROLL
    for (int k = 0; k < size<2>(keys); ++k) {
      gemm(mma, keys(_, _, k), q(_, _, k), acc);
      mma.accumulate_ = GMMA::ScaleOut::One;
    }
  }

  __device__ __forceinline__ void release(Barrier& barrier) {
    __syncwarp();  // all lanes have read what they need
    if (lane == 0) barrier.arrive();
  }

  __device__ __forceinline__ void load_slab(int buffer, int slab_of_unit, int tile) {
    int const slab = rings.slab(buffer, slab_of_unit), first = my_side * kMine;
    auto const& unit = smem.unit[buffer];
    CUTE_UNROLL
    for (int j = 0; j < kColumns / 8; ++j) {
      float2 const w = *reinterpret_cast<float2 const*>(&smem.weight[slab][8 * j + lane % 4 * 2]);
      float half = 0.5f;
      if constexpr (kLinear) half *= inverse_of(smem.unit_weight[slab][8 * j / kHeads]);
      weight[2 * j] = half * w.x;
      weight[2 * j + 1] = half * w.y;
    }
    if constexpr (kLinear) {
      CUTE_UNROLL
      for (int p = 0; p < kMine; ++p) unit_weight[p] = smem.unit_weight[slab][first + p];
    }
    bool const repeats = kTokens == 1 && my_side == 1;  // what the quad's other lanes end with
    tokens = repeats ? 0 : unit.tokens - slab_of_unit * kTokens - first;
    token = unit.token + slab_of_unit * kTokens + first;
    range = &smem.range[slab][repeats ? 0 : first];
    if constexpr (kKeepRanges) {
      CUTE_UNROLL
      for (int p = 0; p < kMine; ++p) kept_seen[p] = seen_by(p);
    }
    key = unit.first_key + tile * kTileKeys + row;
    int64_t const at = unit.out + (slab_of_unit * kTokens + first) * queries.out_stride_token + key;
    out = static_cast<char*>(queries.out) + at * out_bytes();
  }

  __device__ __forceinline__ Seen seen_by(int p) const {
    Range const sees = ranges.clamp(range[p], token + p);
    int columns = p < tokens ? queries.columns : 0;
    asm("" : "+r"(columns));  // or it is worked out anew for every product
    return {sees.start, uint32_t(sees.end - sees.start), columns};
  }

  // Of the lane's two keys, each query's columns that it holds; and the first of the quad's exchanges.
  __device__ __forceinline__ void add_columns(Frag const& acc, Partial& to) const {
    struct Sums {
      float of[2] = {0.f, 0.f};  // keys lane / 4 and 8 + lane / 4
    };
    constexpr int kEach = kHeads / 2;
    auto const add = [&](Sums& sums, int p, int side, int i) {
      int const at = (side * kMine + p) * kEach + i;
      float const x = kLinear ? fabsf(acc(at)) : acc(at) + fabsf(acc(at));
      sums.of[i % 4 / 2] = fmaf(x, weight[at / 4 * 2 + i % 2], sums.of[i % 4 / 2]);
    };
    auto const add_linear_half = [&](Sums& sums, int p, int side) {
      if constexpr (kLinear) {
        CUTE_UNROLL
        for (int i = 0; i < 2; ++i)
          sums.of[i] = fmaf(acc(place_of_piece(side * kMine + p) + 2 * i), linear_factor, sums.of[i]);
      }
    };
    auto const exchange = [&](Sums const& sums, int p, int side) {
      bool const second = lane % 2;
      to.kept[p][side] = second ? sums.of[1] : sums.of[0];
      to.received[p][side] = __shfl_xor_sync(~0u, second ? sums.of[0] : sums.of[1], 1);
    };
    CUTE_UNROLL
    for (int p = 0; p < kMine; ++p) {
      CUTE_UNROLL
      for (int side = 0; side < kSides; ++side) {
        Sums sums;
        CUTE_UNROLL
        for (int i = 0; i < kEach; ++i) add(sums, p, side, i);
        add_linear_half(sums, p, side);
        exchange(sums, p, side);
      }
    }
  }

  // In an accumulator, for the first of the lane's keys.
  static __device__ __forceinline__ constexpr int place_of_piece(int token) {
    return Config::row_of_piece(token, 0) / 8 * 4 + token % 2;
  }

  // The other exchange: this lane's key and queries. The next product is of the key that is `step` further.
  __device__ __forceinline__ void finish(Partial const& of, int step) {
    float logit[kMine];
    CUTE_UNROLL
    for (int p = 0; p < kMine; ++p) {
      float const a = of.kept[p][0] + of.received[p][0];
      float const b = of.kept[p][kSides - 1] + of.received[p][kSides - 1];
      logit[p] = (my_side ? b : a) + __shfl_xor_sync(~0u, my_side ? a : b, 2);
    }
    CUTE_UNROLL
    for (int p = 0; p < kMine; ++p) {
      if constexpr (kLinear) logit[p] *= unit_weight[p];
      Seen const seen = kKeepRanges ? kept_seen[p] : seen_by(p);
      bool const is_seen = of.valid && uint32_t(key - seen.start) < seen.count;
      store(key < seen.columns, out + p * queries.out_stride_token * out_bytes(),
            is_seen ? logit[p] * of.scale : __uint_as_float(0xff800000));
    }
    key += step;
    out += step * out_bytes();
  }

  __device__ __forceinline__ int out_bytes() const { return kKeepRanges ? kept_out_bytes : queries.out_bf16 ? 2 : 4; }

  // (A branch would keep what follows waiting.)
  __device__ __forceinline__ void store(bool some, char* at, float value) const {
    bool const bf16 = out_bytes() == 2;
    asm volatile(
        "{ .reg .pred wide, narrow; .reg .b16 half; setp.ne.s32 wide, %2, 0; setp.ne.s32 narrow, %3, 0; "
        "cvt.rn.bf16.f32 half, %1; @wide st.global.f32 [%0], %1; @narrow st.global.b16 [%0], half; }" ::"l"(at),
        "f"(value), "r"(int(some && !bf16)), "r"(int(some && bf16))
        : "memory");
  }
};

}  // namespace dsa::sm90::indexer_logits
