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
  int const warp, lane;
  BlockIndices after_next, third;  // blocks n + 2 and n + 3
  BlockRows<Format> now, next;
  uint4 codes[kAhead][2];

  __device__ __forceinline__ DecodeProducer(DecodeParams const& params, Walk const& walk, Sink const& sink)
      : params(params), walk(walk), sink(sink), warp(threadIdx.x / 32 % 4), lane(threadIdx.x % 32) {}

  __device__ __forceinline__ void run() {
    BlockIndices first, second;
    load_indices(first);
    load_indices(second);
    load_indices(after_next);
    now.open(params, first, lane);
    BlockRows<Format>::prefetch(params, second, lane);
    if constexpr (kCodeTiles > 0) {
#pragma unroll
      for (int turn = 0; turn < kAhead; ++turn) load_codes(now, turn, turn);
    }
    while (now.exists) {
      next.open(params, second, lane);
      BlockRows<Format>::prefetch(params, after_next, lane);
      load_indices(third);
      fill_block();
      now = next;
      second = after_next;
      after_next = third;
    }
  }

 private:
  // The order of the code tiles is that of the sink's positions.
  static constexpr bool is_code(int position) { return Sink::column_tile(position) < kCodeTiles; }
  static constexpr int position_of_turn(int turn) {
    int position = 0;
    for (int seen = 0;; ++position)
      if (is_code(position) && seen++ == turn) return position;
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
    block.load(walk.next(), warp * 16 + lane % 16);
  }

  __device__ __forceinline__ void load_codes(BlockRows<Format> const& rows, int turn, int slot) {
    if (turn >= kCodeTiles) return;
#pragma unroll
    for (int j = 0; j < 2; ++j) codes[slot][j] = rows.load_codes(Sink::column_tile(position_of_turn(turn)), j, lane);
  }

  __device__ __forceinline__ void fill_block() {
    int turn = 0;
#pragma unroll
    for (int g = 0; g < Sink::kGroups; ++g) {
      sink.wait(now.consumer, g);
      if (g == 0 && lane == 0) sink.valid_rows(now.consumer)[warp] = now.valid;
#pragma unroll
      for (int p = Sink::group_begin(g); p < Sink::group_end(g); ++p) {
        uint32_t const tile = cute::cast_smem_ptr_to_uint(sink.tile(now.consumer, p));
        int const column_tile = Sink::column_tile(p);
        if (!is_code(p)) {
          now.copy_tile(tile, Format::kRopeAt + (column_tile - kCodeTiles) * 128, lane, warp);
          continue;
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float const scale = now.scale(column_tile, j, lane);
          store_codes(tile, codes[turn % kAhead][j], now.is_valid(lane / 4 + j * 8) ? scale : 1.f, j, lane, warp);
        }
        load_ahead(turn);
        ++turn;
      }
      if (has_copies(g)) arrive_after_gather(reinterpret_cast<uint64_t&>(sink.full(now.consumer, g)));
      cutlass::arch::fence_view_async_shared();
      __syncwarp();
      if (lane == 0) sink.full(now.consumer, g).arrive();
    }
#pragma unroll
    for (int t = kCodeTiles; t < kTurns; ++t) load_ahead(t);
    sink.next_block(now.consumer);
  }

  // After a turn its registers take the codes of the one that comes kAhead turns later.
  __device__ __forceinline__ void load_ahead(int turn) {
    if (turn + kAhead < kTurns)
      load_codes(now, turn + kAhead, turn % kAhead);
    else
      load_codes(next, turn + kAhead - kTurns, turn % kAhead);
  }
};

}  // namespace dsa::sm90
