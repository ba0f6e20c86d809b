// The two producer warpgroups where another one fetches a block's codes (raw_rows.cuh): they turn these into bf16
// tiles, and copy the RoPE columns. Each warp has eight rows. Sink is as in producer.cuh.
#pragma once

#include "raw_rows.cuh"

namespace dsa::sm90 {

// A row of the block, as a thread sees it.
template <class Format>
struct ConvertedRow {
  bool counts;
  char const* place;  // in its cache
  RawScales<Format> scales;
  uint32_t exponents[(Format::kGroups + 3) / 4];  // of scales, biased, a byte each

  // From `scales`; whether those of all rows of the warp are simple (attention/fp8.cuh).
  __device__ __forceinline__ bool take_scales() {
    bool simple = true;
    if constexpr (Format::kScaleBytes == 4) {
      uint32_t const words[4] = {scales.x, scales.y, scales.z, scales.w};
      exponents[0] = 0;
      CUTE_UNROLL
      for (int i = 0; i < 4; ++i) exponents[0] |= words[i] >> 23 << i * 8;
      simple = scales_are_simple(words);
    } else {
      exponents[0] = scales.x;
      exponents[1] = (scales.y & 0x00ffffff) | 0x01000000;  // a pad byte counts as one
      CUTE_UNROLL
      for (uint32_t four : exponents) simple &= __vminu4(__vmaxu4(four, 0x01010101), 0x86868686) == four;  // 1 to 134
    }
    CUTE_UNROLL
    for (uint32_t& four : exponents)
      if (!counts) four = kZeroExponent * 0x01010101;
    return __all_sync(~0u, !counts || simple);
  }

  // 2^120 times a scale, twice, if it is simple.
  __device__ __forceinline__ uint32_t factor(int group) const {
    return simple_factor(exponents[group / 4] >> group % 4 * 8 & 0xff);
  }
  // Any scale, as a number. (v32's is read again.)
  __device__ __forceinline__ float scale(int group) const {
    if (!counts) return 0.f;
    if constexpr (Format::kScaleBytes == 4)
      return __ldg(reinterpret_cast<float const*>(place + Format::kScalesAt) + group);
    else
      return __uint_as_float(e8m0_to_fp32_bits((group < 4 ? exponents[0] : exponents[1]) >> group % 4 * 8 & 0xff));
  }
};

// Raw: a RawRows.
template <class Format, class Raw, class Sink>
struct RawProducer {
  static constexpr int kCodeTiles = Format::kNope / kTileCols;

  Sink sink;
  Raw& raw;
  Lane self;
  ConvertedRow<Format> row;
  uint4 codes[kCodeTiles];
  RawSlot<Raw::kSlots> at;
  uint32_t blocks = 0;
  int consumer = 0;
  uint32_t counted;                     // bit r: the warp's r-th row counts
  uint32_t const codes_at, other_half;  // self's: tiles lie multiples of 32 bytes apart, so that both stay the same

  __device__ __forceinline__ RawProducer(Sink const& sink, Raw& raw)
      : sink(sink), raw(raw), at(self.warp() % kFedWarps), codes_at(self.codes_at()), other_half(codes_at ^ 16) {}

  __device__ __forceinline__ void run() {
    for (bool last = false; !last;) {
      uint32_t const kind = read();
      if (!(kind & BlockKind::kExists)) break;
      last = kind & Raw::kIsLast;
      if (last) sink.all_is_read(self.lane());
      fill_block(row.take_scales());
    }
  }

 private:
  // The next block; what it is. (All is read at once, whether there is any block or none.)
  __device__ __forceinline__ uint32_t read() {
    int const from = self.warp() / kFedWarps, r = self.row();
    raw.full[self.warp()][blocks % 2].wait(blocks / 2 % 2);
    asm volatile("" ::: "memory");  // (the wait tells the compiler nothing of memory)
    uint8_t const* const bytes = raw.pair[from][at.slot][r / 2].row(r % 2);
    // (All lanes read the same. Shuffled, so that the compiler knows, and what follows takes uniform registers.)
    uint32_t const kind = __shfl_sync(~0u, raw.kind[from][at.slot], 0);
    row.place = raw.place[from][at.slot][r];
    if constexpr (Raw::Pair::kHasScales)
      row.scales = *reinterpret_cast<uint4 const*>(bytes + Format::kScalesAt);
    else
      row.scales = raw.other_scales[from][at.slot][r];
    CUTE_UNROLL
    for (int t = 0; t < kCodeTiles; ++t)
      codes[t] = *reinterpret_cast<uint4 const*>(bytes + t * kTileCols + self.quarter() * 16);
    __syncwarp();
    if (self.lane() == 0) raw.empty[from][at.slot].arrive();
    at.pass(kFedWarps);
    ++blocks;
    consumer = kind / BlockKind::kOddConsumer & 1;
    counted = kind >> Raw::kCountBits;
    row.counts = counted >> r & 1;
    return kind;
  }

  static constexpr bool is_code(int position) { return Sink::column_tile(position) < kCodeTiles; }

  static constexpr int rope_position() {
    int position = 0;
    while (is_code(position)) ++position;
    return position;
  }
  static constexpr int group_of(int position) {
    int g = 0;
    while (position >= Sink::group_end(g)) ++g;
    return g;
  }

  // RoPE columns come from memory, so their copy begins first, but for groups that have two places.
  __device__ __forceinline__ void fill_block(bool simple) {
    constexpr int kRope = rope_position(), kRopeGroup = group_of(kRope),
                  kRopeBefore = kRopeGroup < Sink::kGroupsAhead ? kRopeGroup : Sink::kGroupsAhead;
    cute::for_each(cute::make_seq<Sink::kGroups>{}, [&](auto g) {
      constexpr int kGroup = decltype(g)::value, kBegin = Sink::group_begin(kGroup), kEnd = Sink::group_end(kGroup);
      if constexpr (kGroup == kRopeBefore) {
        sink.wait(consumer, kRopeGroup);
        copy_tile(tile(kRope), row.place + Format::kRopeAt, row.counts, self);
        arrive_after_gather(reinterpret_cast<uint64_t&>(sink.full(consumer, kRopeGroup)));
      }
      if constexpr (kGroup != kRopeGroup) sink.wait(consumer, kGroup);
      if constexpr (kGroup == 0) {
        if (self.lane() == 0) sink.valid_rows(consumer)[self.warp()] = counted;
      }
      cute::for_each(cute::make_seq<kEnd - kBegin>{}, [&](auto i) { fill_tile<kBegin + decltype(i)::value>(); });
      if (!simple) fill_again(kBegin, kEnd);
      __syncwarp();  // (no fence for wgmma: the consumers have one after their wait)
      if (self.lane() == 0) sink.full(consumer, kGroup).arrive();
    });
    sink.next_block(consumer);
  }

  __device__ __forceinline__ uint32_t tile(int position) {
    return cute::cast_smem_ptr_to_uint(sink.tile(consumer, position));
  }

  template <int kPosition>
  __device__ __forceinline__ void fill_tile() {
    constexpr int kTile = Sink::column_tile(kPosition);
    if constexpr (is_code(kPosition)) {
      RowPiece piece;
      piece.convert_simple(codes[kTile], row.factor(kTile * kTileCols / Format::kGroup));
      piece.store(tile(kPosition) + codes_at, tile(kPosition) + other_half);
    }
  }

  // The tiles of a group whose scales are not simple: what they hold is wrong. (Codes are read again: to index
  // registers would put them into memory.)
  __device__ __forceinline__ void fill_again(int begin, int end) {
#pragma unroll 1
    for (int position = begin; position < end; ++position) {
      int const column_tile = Sink::column_tile(position);
      if (column_tile >= kCodeTiles) continue;
      uint4 its_codes = {};
      if (row.counts) its_codes = load_16B(row.place + column_tile * kTileCols + self.quarter() * 16);
      RowPiece piece;
      piece.convert_any(its_codes, row.scale(column_tile * kTileCols / Format::kGroup));
      piece.store(tile(position) + self.codes_at());
    }
  }
};

}  // namespace dsa::sm90
