// The two producer warpgroups: they fill key tiles with bf16, from the rows of a cache that idx names.
//
// Bytes come in steps, so that no warp waits for memory:
//   two blocks ahead       a block's indices are loaded, by the lanes that will need them
//   a block ahead          its rows are found and fetched into L2, and its scales loaded into registers
//   half to a block ahead  codes are: kAhead tiles
//   then                   codes become bf16 in shared memory; RoPE columns, and all of a bf16 cache, are copied
// (To look rows up for four blocks at a time, and hand them over in shared memory, takes fewer instructions and longer:
// every access there queues behind the products' operands.)
//
// Where a CTA has a few blocks, what counts is when the first of them are there, and there a warp waits for its first
// codes before it looks up the second block's rows: ptxas has one scoreboard for all loads of the loop, so whoever
// waits for one waits for all. Then loads come in batches, none of which begins before the one before is there (with
// many blocks 2 to 3 % slower):
//
//   at the start           indices of the first two blocks; then the first one's scales and codes
//   before a block         the next one's rows are found and fetched into L2
//   once it may be filled  the index after those; with its first tiles, codes of its last ones
//   with its last tiles    the next block's scales, and its first codes
//
// Walk: where the warp is in its work; take(params, lane, index) tells what the next block is, with the consumer that
// it is for, and gives every lane its index. Sink: the tiles that a block goes to, in groups:
//   kAhead                                  tiles of codes that are loaded ahead, into registers: 4 KB a CTA each
//   kInBatches                              whether there are few blocks
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
  static constexpr int kAhead = Sink::kAhead;
  // Turns of a block: its code tiles, and as many idle ones as make the registers come round.
  static constexpr int kTurns = (kCodeTiles + kAhead - 1) / kAhead * kAhead;

  DecodeParams const& params;
  Walk walk;
  Sink sink;
  Lane self;
  BlockRows<Format> now, next;
  uint4 codes[kAhead];
  uint32_t block_after = 0;  // in batches: the one after next, and this thread's index in it
  int index_after = -1;
  uint32_t factor;  // of the tile that is being filled

  __device__ __forceinline__ DecodeProducer(DecodeParams const& params, Walk const& walk, Sink const& sink)
      : params(params), walk(walk), sink(sink) {}

  __device__ __forceinline__ void run() {
    if constexpr (Sink::kInBatches) return run_in_batches();
    int index;
    uint32_t block = walk.take(params, self, index);
    for (;;) {
      self.forget();
      next.open(params, block, index, self);
      if constexpr (kCodeTiles > 0) next.word = __ldg(next.word_at(self));
      if (block != 0) block = walk.take(params, self, index);
      if (now.exists()) {
        next.prefetch(self);
        fill_block();
      } else {  // the first block is loaded at once, and what of it waits for registers fetched behind that
        cute::for_each(cute::make_seq<kAhead>{}, [&](auto turn) { load_codes<decltype(turn)::value>(next); });
        next.prefetch(self);
      }
      now = next;
      if (!now.exists()) break;
    }
  }

 private:
  __device__ __forceinline__ void run_in_batches() {
    int first;
    uint32_t const first_block = walk.take(params, self, first);
    if (first_block != 0) block_after = walk.take(params, self, index_after);
    await(first);
    await(index_after);
    now.open(params, first_block, first, self);
    now.prefetch(self);
    load_scales(now);
    cute::for_each(cute::make_seq<kAhead>{}, [&](auto turn) { load_codes<decltype(turn)::value>(now); });
    while (now.exists()) {
      self.forget();
      next.open(params, block_after, index_after, self);
      next.prefetch_scales(self);
      next.prefetch(self);
      fill_block();
      now = next;
    }
  }

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

  // (Turns and positions are template arguments: the compiler does not fold the functions above elsewhere.)
  template <int kTurn>
  __device__ __forceinline__ void load_codes(BlockRows<Format> const& rows) {
    if constexpr (kTurn < kCodeTiles)
      codes[kTurn % kAhead] = rows.load_codes(Sink::column_tile(position_of_turn(kTurn)));
  }

  // The compiler moves no load over this, and no wait for one.
  static __device__ __forceinline__ void hold_loads() { __syncwarp(); }

  // Where it stands, not earlier, which the compiler would prefer.
  __device__ __forceinline__ void load_scales(BlockRows<Format>& rows) {
    if constexpr (kCodeTiles > 0) rows.word = load_4B_now(rows.word_at(self));
  }

  // After a turn its registers take the codes of the one that comes kAhead turns later.
  template <int kTurn>
  __device__ __forceinline__ void load_ahead() {
    if constexpr (Sink::kInBatches && kTurn + kAhead == kTurns) {
      hold_loads();
      load_scales(next);
    }
    if constexpr (kTurn + kAhead < kTurns)
      load_codes<kTurn + kAhead>(now);
    else
      load_codes<kTurn + kAhead - kTurns>(next);
  }

  __device__ __forceinline__ void fill_block() {
    bool simple = true;
    if constexpr (kCodeTiles > 0 && !Sink::kInBatches) simple = now.spread_scales(self);
    cute::for_each(cute::make_seq<Sink::kGroups>{}, [&](auto g) {
      constexpr int kGroup = decltype(g)::value, kBegin = Sink::group_begin(kGroup), kEnd = Sink::group_end(kGroup);
      sink.wait(now.consumer(), kGroup);
      if constexpr (kGroup == 0) {
        if constexpr (kCodeTiles > 0 && Sink::kInBatches) simple = now.spread_scales(self);
        uint32_t const valid = now.valid_rows();
        if (self.lane() == 0) sink.valid_rows(now.consumer())[self.warp()] = valid;
        if constexpr (Sink::kInBatches)
          if (block_after != 0) block_after = walk.take(params, self, index_after);
      }
      cute::for_each(cute::make_seq<kEnd - kBegin>{}, [&](auto i) { fill_tile<kBegin + decltype(i)::value>(); });
      if constexpr (kCodeTiles > 0)
        if (!simple) fill_again(kBegin, kEnd);
      if constexpr (has_copies(kGroup))
        arrive_after_gather(reinterpret_cast<uint64_t&>(sink.full(now.consumer(), kGroup)));
      __syncwarp();  // (no fence for wgmma: the consumers have one after their wait, and here it would wait for the
                     // stores)
      if (self.lane() == 0) sink.full(now.consumer(), kGroup).arrive();
    });
    cute::for_each(cute::make_seq<kTurns - kCodeTiles>{},
                   [&](auto i) { load_ahead<kCodeTiles + decltype(i)::value>(); });
    sink.next_block(now.consumer());
  }

  __device__ __forceinline__ uint32_t tile(int position) {
    return cute::cast_smem_ptr_to_uint(sink.tile(now.consumer(), position));
  }

  template <int kPosition>
  __device__ __forceinline__ void fill_tile() {
    constexpr int kTile = Sink::column_tile(kPosition);
    if constexpr (!is_code(kPosition)) {
      now.copy_tile(tile(kPosition), Format::kRopeAt + (kTile - kCodeTiles) * 128, self);
      if constexpr (Sink::kInBatches && kCodeTiles > 0) hold_loads();  // or it waits for codes before it copies
    } else {
      constexpr int kTurn = turn_of(kPosition), kScale = now.group(kTile);
      if constexpr (kTurn == 0 || now.group(Sink::column_tile(position_of_turn(kTurn - (kTurn > 0)))) != kScale)
        factor = now.factor(kScale, self);
      RowPiece piece;
      piece.convert_simple(codes[kTurn % kAhead], factor);
      piece.store(tile(kPosition) + self.codes_at());
      load_ahead<kTurn>();
    }
  }

  // The tiles of a group whose scales are not simple: what they hold is wrong. (A second version of everything would
  // cost the first one registers, and time.)
  __device__ __forceinline__ void fill_again(int begin, int end) {
#pragma unroll 1
    for (int position = begin; position < end; ++position) {
      int const column_tile = Sink::column_tile(position);
      if (column_tile >= kCodeTiles) continue;
      uint4 const its_codes = now.load_codes(column_tile);
      RowPiece piece;
      piece.convert_any(now.counts() ? its_codes : uint4{}, now.scale(now.group(column_tile), self));
      piece.store(tile(position) + self.codes_at());
    }
  }
};

}  // namespace dsa::sm90
