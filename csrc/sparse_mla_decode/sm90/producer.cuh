// The producer warpgroup: fills key tiles with bf16, from the rows of a cache that idx names.
//
// Bytes come in three steps, so that no warp waits for memory:
//   block n + 3   its indices are loaded
//   block n + 2   its rows are fetched into L2
//   block n + 1   its scales, and codes from half a block ahead on, are loaded into registers: kAhead tiles
//   block n       codes become bf16 in shared memory; RoPE columns, and all of a bf16 cache, are copied (cp.async)
//
// Walk: next() gives the blocks in order, with the consumer that each is for. Sink: the tiles that a block goes to, in
// groups:
//   kGroups, group_begin(g), group_end(g)   positions of a group's tiles
//   column_tile(position)
//   wait(consumer, g)                       until the consumer has left the group's tiles
//   tile(consumer, position)
//   valid_rows(consumer)                    where the block's valid bits go, after the first wait
//   full(consumer, g)
//   next_block(consumer)
#pragma once

#include "rows.cuh"

namespace dsa::sm90 {

template <class Format, class Walk, class Sink>
struct DecodeProducer {
  static constexpr int kCodeTiles = Format::kNope / 64;
  static constexpr int kTiles = Format::kHeadDim / 64;
  static constexpr int kAhead = 4;  // tiles of codes in registers: 16 KB a CTA
  // Turns of a block: its code tiles, and as many idle ones as make the registers come round.
  static constexpr int kTurns = (kCodeTiles + kAhead - 1) / kAhead * kAhead;

  DecodeParams const& params;
  Walk walk;
  Sink sink;
  Lane const self;
  BlockIndices after_next, third;  // blocks n + 2 and n + 3
  BlockRows<Format> now, next;
  uint4 codes[kAhead][2];

  __device__ __forceinline__ DecodeProducer(DecodeParams const& params, Walk const& walk, Sink const& sink)
      : params(params), walk(walk), sink(sink) {}

  __device__ __forceinline__ void run() {
    BlockIndices first, second;
    load_indices(first);
    load_indices(second);
    load_indices(after_next);
    now.open(params, first, self.lane);
    BlockRows<Format>::prefetch(params, second, self.lane);
    if constexpr (kCodeTiles > 0) {
      cute::for_each(cute::make_seq<kAhead>{}, [&](auto turn) { load_codes<decltype(turn)::value>(now); });
    }
    while (now.exists) {
      next.open(params, second, self.lane);
      BlockRows<Format>::prefetch(params, after_next, self.lane);
      load_indices(third);
      // (Apart from each other: the code of one block should be short, for the instruction caches.)
      if (kCodeTiles == 0 || now.scales_are_simple(self.lane))
        fill_block<true>();
      else
        fill_block<false>();
      now = next;
      second = after_next;
      after_next = third;
    }
  }

 private:
  // The order of the code tiles is that of the sink's positions.
  static constexpr bool is_code(int position) { return Sink::column_tile(position) < kCodeTiles; }
  static constexpr int turn_of(int position) {
    int turn = 0;
    for (int p = 0; p < position; ++p) turn += is_code(p);
    return turn;
  }
  static constexpr int position_of_turn(int turn) {
    int position = 0;
    while (!is_code(position) || turn_of(position) != turn) ++position;
    return position;
  }
  static constexpr bool has_copies(int g) {
    for (int p = Sink::group_begin(g); p < Sink::group_end(g); ++p)
      if (!is_code(p)) return true;
    return false;
  }

  __device__ __forceinline__ void load_indices(BlockIndices& block) {
    block.selection = -1;
    if (walk.done()) return;
    block.consumer = walk.consumer();
    block.load(walk.next(), self.warp * 16 + self.lane % 16);
  }

  // (Turns and positions are template arguments: the compiler does not fold the functions above elsewhere.)
  template <int kTurn>
  __device__ __forceinline__ void load_codes(BlockRows<Format> const& rows) {
    if constexpr (kTurn < kCodeTiles) {
      constexpr int kTile = Sink::column_tile(position_of_turn(kTurn));
#pragma unroll
      for (int j = 0; j < 2; ++j) codes[kTurn % kAhead][j] = rows.load_codes(kTile, j);
    }
  }

  // After a turn its registers take the codes of the one that comes kAhead turns later.
  template <int kTurn>
  __device__ __forceinline__ void load_ahead() {
    if constexpr (kTurn + kAhead < kTurns)
      load_codes<kTurn + kAhead>(now);
    else
      load_codes<kTurn + kAhead - kTurns>(next);
  }

  // kSimple: all scales of the block's rows are (attention/fp8.cuh).
  template <bool kSimple>
  __device__ __forceinline__ void fill_block() {
    cute::for_each(cute::make_seq<Sink::kGroups>{}, [&](auto g) {
      constexpr int kGroup = decltype(g)::value, kBegin = Sink::group_begin(kGroup);
      sink.wait(now.consumer, kGroup);
      if (kGroup == 0 && self.lane == 0) sink.valid_rows(now.consumer)[self.warp] = now.valid;
      cute::for_each(cute::make_seq<Sink::group_end(kGroup) - kBegin>{},
                     [&](auto i) { fill_tile<kSimple, kBegin + decltype(i)::value>(); });
      if constexpr (has_copies(kGroup))
        arrive_after_gather(reinterpret_cast<uint64_t&>(sink.full(now.consumer, kGroup)));
      cutlass::arch::fence_view_async_shared();
      __syncwarp();
      if (self.lane == 0) sink.full(now.consumer, kGroup).arrive();
    });
    cute::for_each(cute::make_seq<kTurns - kCodeTiles>{},
                   [&](auto i) { load_ahead<kCodeTiles + decltype(i)::value>(); });
    sink.next_block(now.consumer);
  }

  template <bool kSimple, int kPosition>
  __device__ __forceinline__ void fill_tile() {
    constexpr int kTile = Sink::column_tile(kPosition);
    uint32_t const tile = cute::cast_smem_ptr_to_uint(sink.tile(now.consumer, kPosition));
    if constexpr (!is_code(kPosition)) {
      now.copy_tile(tile, Format::kRopeAt + (kTile - kCodeTiles) * 128, self.lane, self.warp);
    } else {
      constexpr int kTurn = turn_of(kPosition);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        uint32_t const address = tile + self.codes_at + j * 8 * 128;
        uint32_t const scale = now.scale(kTile, j, self.lane);
        if constexpr (kSimple)
          store_simple(address, codes[kTurn % kAhead][j], now.factor(scale));
        else
          store_any(address, codes[kTurn % kAhead][j], now.number(scale));
      }
      load_ahead<kTurn>();
    }
  }
};

}  // namespace dsa::sm90
