// The eight converter warps of a CTA: rows of a cache, as idx names them, become bf16 keys in shared memory.
//
// A warp has eight rows of a block, or in a pair, where a CTA has half of the keys, every other tile of them; a thread
// 16 columns of each of its row's tiles. What it does is ordered so that nobody waits for memory:
//   two blocks ahead   the index is loaded
//   a block ahead      the row's bytes are, to registers that the block before has left
//   then               they are converted and stored; in a pair, what the other CTA's values are goes there too
#pragma once

#include "arch/any/cluster.cuh"
#include "attention/fp8.cuh"
#include "config.h"
#include "work.h"

namespace dsa::sm100::decode {

// All keys at one place of a worker's blocks.
class KeyWalk {
 public:
  __device__ __forceinline__ KeyWalk(DecodeParams const& params, int worker, int workers, int place)
      : params_(params), walk_(params, worker, workers), place_(place) {}

  // Whether there is another block; if not, the key does not count.
  __device__ __forceinline__ bool next(Key& key) {
    if (n_ == keys_.blocks) {
      DecodeTile tile;
      key = {-1, false};
      if (!walk_.next(tile)) return false;
      keys_ = TileKeys(params_, tile);
      n_ = 0;
    }
    key = keys_.key(n_++, place_);
    return true;
  }

 private:
  DecodeParams const& params_;
  TileWalk walk_;
  int const place_;
  TileKeys keys_{};
  int n_ = 0;
};

// kPart: which of its rows' tiles a warp of a pair has, the even or the odd ones. 0 without a pair.
template <class Config, int kPart>
struct Converter {
  using Format = typename Config::Format;
  static constexpr int kCodeTiles = Format::kNope / kTileCols;
  static constexpr int kTurns = (Config::kTiles - kPart + Config::kCtas - 1) / Config::kCtas;  // tiles of a thread
  static constexpr int tile_of(int turn) { return turn * Config::kCtas + kPart; }
  static constexpr bool is_code(int turn) { return tile_of(turn) < kCodeTiles; }

  // Of one row, as they are in the cache. A row that does not count has 1.
  static constexpr int kScaleWords = Format::kGroups == 0 ? 1 : Format::kScaleBytes == 4 ? 4 : 2;
  static constexpr uint32_t kScalesOfOne = Format::kScaleBytes == 4 ? 0x3f800000 : 0x7f7f7f7f;
  struct Scales {
    uint32_t words[kScaleWords];

    __device__ __forceinline__ uint32_t bits(int group) const {
      if constexpr (Format::kScaleBytes == 4)
        return words[group];
      else
        return e8m0_to_fp32_bits(words[group / 4] >> group % 4 * 8 & 0xff);
    }
    __device__ __forceinline__ bool are_simple() const {
      bool simple = true;
      CUTE_UNROLL
      for (int group = 0; group < Format::kGroups; ++group) simple &= scales_are_simple({bits(group)});
      return simple;
    }
  };

  // Where a row's bytes are; null: it does not count.
  struct Source {
    char const *row, *scales;
  };

  DecodeParams const& params;
  typename Config::SharedStorage& smem;
  uint32_t const rank, row, quarter;  // row: of the CTA's keys
  RingPlace<Config::kKeyStages> key;
  RingPlace<Config::kValueStages> value;
  uint4 raw[kTurns][2];  // a block's bytes that are not stored yet, then the next block's; codes take the first
  Scales scales;

  __device__ __forceinline__ Converter(DecodeParams const& params, typename Config::SharedStorage& smem, uint32_t rank)
      : params(params),
        smem(smem),
        rank(rank),
        row((threadIdx.x / 4 - kFirstConverter * 8) % Config::kOwnKeys),
        quarter(threadIdx.x % 4) {}

  __device__ __forceinline__ void run() {
    KeyWalk walk(params, worker<Config>(), workers<Config>(), rank * Config::kOwnKeys + row);
    Key ahead{-1, false};
    bool loaded, exists = false, more = false;  // whether there is the block in `raw`, the next, the one after that
    do {
      Source const next = find(ahead);
      loaded = exists;
      exists = more;
      more = walk.next(ahead);
      if (loaded)
        convert_block(next);
      else
        load_block(next);
    } while (exists || more);
    // The CTA may not end while products are to arrive. That one part's warps wait keeps it for the other's, too.
    if constexpr (kPart == 0) {
      Config::drain(smem.key_empty, key);
      if constexpr (Config::kPair) Config::drain(smem.value_empty, value);
    }
  }

 private:
  template <class Turn>
  __device__ __forceinline__ static void for_each_turn(Turn const& turn) {
    cute::for_each(cute::make_seq<kTurns>{}, turn);
  }

  __device__ __forceinline__ Source find(Key const& k) const {
    if (k.slot < 0) return {nullptr, nullptr};
    KvCache const c = k.extra ? params.keys[1].cache : params.keys[0].cache;
    KvFields const fields = kv_fields<Format>(c.layout, k.slot);
    auto const* const cache = static_cast<char const*>(c.data);
    return {cache + fields.codes, cache + fields.scales};
  }

  __device__ __forceinline__ void load_scales(Source const& from) {
    CUTE_UNROLL
    for (uint32_t& word : scales.words) word = kScalesOfOne;
    if constexpr (Format::kGroups > 0) {
      using Words = std::conditional_t<kScaleWords == 4, uint4, uint2>;
      if (from.row != nullptr)
        reinterpret_cast<Words&>(scales.words) = __ldg(reinterpret_cast<Words const*>(from.scales));
    }
  }

  // The thread's bytes of a tile. Copied columns are its row's 16-byte pieces q and q + 4, in odd rows the latter
  // first: eight neighbouring threads then store to different banks.
  template <int kTurn>
  __device__ __forceinline__ void load(Source const& from) {
    constexpr int kTile = tile_of(kTurn);
    if constexpr (is_code(kTurn)) {
      raw[kTurn][0] = load_16B(from.row, kTile * kTileCols + quarter * 16);
    } else {
      CUTE_UNROLL
      for (int i = 0; i < 2; ++i)
        raw[kTurn][i] =
            load_16B(from.row, Format::kRopeAt + (kTile - kCodeTiles) * kTileCols * 2 + copied_piece(i) * 16);
    }
  }
  __device__ __forceinline__ static uint4 load_16B(char const* row, uint32_t byte) {
    uint4 v{};
    if (row != nullptr)  // or zeros; what the cache holds there may be NaN
      asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                   : "l"(row + byte));
    return v;
  }
  __device__ __forceinline__ uint32_t copied_piece(uint32_t i) const { return quarter + (i ^ row) % 2 * 4; }

  __device__ __forceinline__ void load_block(Source const& from) {
    load_scales(from);
    for_each_turn([&](auto turn) { load<decltype(turn)::value>(from); });
  }

  // Stores the block whose bytes are there, and loads the next.
  __device__ __forceinline__ void convert_block(Source const& next) {
    Scales const now = scales;
    bool const simple = __all_sync(~0u, now.are_simple());
    load_scales(next);
    smem.key_empty[key.stage].wait(key.phase ^ 1);
    if constexpr (Config::kPair) smem.value_empty[value.stage].wait(value.phase ^ 1);
    for_each_turn([&](auto turn) {
      constexpr int kTurn = decltype(turn)::value;
      store<kTurn>(now, simple);
      load<kTurn>(next);
    });
    fence_operands<Config::kCtas>();
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive_for_products<Config::kCtas>(smem.key_full[key.stage]);
    key.advance();
    value.advance();
  }

  template <int kTurn>
  __device__ __forceinline__ void store(Scales const& now, bool simple) {
    constexpr int kTile = tile_of(kTurn);
    if constexpr (is_code(kTurn)) {
      uint32_t const scale = now.bits(kTile * kTileCols / Format::kGroup);
      uint4 const codes = raw[kTurn][0];
      uint2 out[4];
      if (simple) {
        uint32_t const factor = simple_factor(scale >> 23);
        out[0] = dequantise_simple(codes.x, factor);
        out[1] = dequantise_simple(codes.y, factor);
        out[2] = dequantise_simple(codes.z, factor);
        out[3] = dequantise_simple(codes.w, factor);
      } else {
        float const number = __uint_as_float(scale);
        out[0] = dequantise(codes.x, number);
        out[1] = dequantise(codes.y, number);
        out[2] = dequantise(codes.z, number);
        out[3] = dequantise(codes.w, number);
      }
      CUTE_UNROLL
      for (int i = 0; i < 2; ++i)
        store_piece<kTile>(quarter * 2 + i, make_uint4(out[2 * i].x, out[2 * i].y, out[2 * i + 1].x, out[2 * i + 1].y));
    } else {
      CUTE_UNROLL
      for (int i = 0; i < 2; ++i) store_piece<kTile>(copied_piece(i), raw[kTurn][i]);
    }
  }

  // 16 bytes of the row to a tile of K, in the 128-byte swizzle; in a pair also to the CTA whose values they are.
  template <int kTile>
  __device__ __forceinline__ void store_piece(uint32_t piece, uint4 const& bytes) {
    uint32_t const at = row * kTileCols + (piece ^ row % 8) * 8;
    store_16B(smem.key[key.stage] + kTile * Config::kKeyTileElements + at, bytes);
    if constexpr (Config::kPair && kTile < Config::kValueTiles) {
      constexpr uint32_t kOwner = kTile / Config::kOwnValueTiles;
      bf16* const to = smem.value[value.stage] + kTile % Config::kOwnValueTiles * kTileElements +
                       rank * Config::kKeyTileElements + at;
      if (rank == kOwner)
        store_16B(to, bytes);
      else
        store_16B(in_cta(to, kOwner), bytes);
    }
  }
  __device__ __forceinline__ static void store_16B(bf16* to, uint4 const& bytes) {
    *reinterpret_cast<uint4*>(to) = bytes;
  }
};

}  // namespace dsa::sm100::decode
