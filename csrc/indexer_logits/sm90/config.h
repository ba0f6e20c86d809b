// Tiles, shared memory and barriers of the indexer logits on Hopper. kernel.cuh draws the pipeline.
#pragma once

#include <cuda.h>
#include <cutlass/arch/barrier.h>

#include <cute/arch/mma_sm90_gmma_ext.hpp>  // shapes that tensor.hpp leaves out
#include <cute/atom/mma_traits_sm90_gmma_ext.hpp>
#include <cute/tensor.hpp>

#include "indexer_logits/loaders.cuh"

namespace dsa::sm90::indexer_logits {

using namespace cute;
using namespace dsa::indexer;
using e4m3 = cutlass::float_e4m3_t;

// Three consumer warpgroups and another one.
constexpr int kConsumers = 3;
constexpr int kThreads = 128 * (kConsumers + 1), kWarps = kThreads / 32, kConsumerWarps = 4 * kConsumers;
constexpr int kOtherThreads = 128;  // that are no consumers
constexpr int kConsumerRegisters = 144;
constexpr int kOtherRegisters = 80;
static_assert(kConsumers * kConsumerRegisters + kOtherRegisters == 512);

constexpr int kHalf = kTileKeys / 2;  // keys of one product, and rows of a warpgroup's accumulator

// How the consumers share the work (kernel.cuh): each has its queries, or its turns at the tiles.
template <class Ranges>
constexpr bool split_queries = std::is_same_v<Ranges, RaggedRanges>;
// The warps of the other warpgroup: keys, units (Q), keys or fill, fill. Each is on a scheduler of its own. Where tiles
// come often (paged) and consumers are busy (128 columns), two warps load them by turns: were it one, its scheduler
// would be so much busier that the consumers' other warps waited for the one there (3 % of a call with two tokens).
template <class Config, class Ranges>
constexpr int key_producers = split_queries<Ranges> || Config::kColumns < 128 ? 1 : 2;
template <class Config, class Ranges>
constexpr int fill_warps = 3 - key_producers<Config, Ranges>;
__host__ __device__ constexpr int turns_of(bool split_queries) { return split_queries ? 1 : kConsumers; }

enum : uint32_t { kStartKnown = 1, kFirstUnitLoaded, kLinearHalf };  // named barriers; the last are kConsumers
template <class Config, class Ranges>
constexpr int kFirstUnitThreads = 128 + 32 * fill_warps<Config, Ranges>;

__device__ __forceinline__ float power_of_two(int exponent) { return __uint_as_float(uint32_t(127 + exponent) << 23); }
// Of a power of two from 2^-126 to 2^125.
__device__ __forceinline__ float inverse_of(float unit) {
  return __uint_as_float((254u << 23) - __float_as_uint(unit));
}

struct TensorMaps {
  CUtensorMap q, keys;
};

// A row of kDim codes is as wide as the swizzle, so that eight rows are one atom.
template <int kDim>
struct Rows;
template <>
struct Rows<128> {
  using Atom = GMMA::Layout_K_SW128_Atom<e4m3>;
  static constexpr CUtensorMapSwizzle kSwizzle = CU_TENSOR_MAP_SWIZZLE_128B;
};
template <>
struct Rows<64> {
  using Atom = GMMA::Layout_K_SW64_Atom<e4m3>;
  static constexpr CUtensorMapSwizzle kSwizzle = CU_TENSOR_MAP_SWIZZLE_64B;
};
template <>
struct Rows<32> {
  using Atom = GMMA::Layout_K_SW32_Atom<e4m3>;
  static constexpr CUtensorMapSwizzle kSwizzle = CU_TENSOR_MAP_SWIZZLE_32B;
};

template <int kRows>  // of Q, which are the columns of the product
struct Product;
template <>
struct Product<144> {
  using Op = SM90_64x144x32_F32E4M3E4M3_SS_TN<>;
};
template <>
struct Product<136> {
  using Op = SM90_64x136x32_F32E4M3E4M3_SS_TN<>;
};
template <>
struct Product<128> {
  using Op = SM90_64x128x32_F32E4M3E4M3_SS_TN<>;
};
template <>
struct Product<64> {
  using Op = SM90_64x64x32_F32E4M3E4M3_SS_TN<>;
};

// Tiles of keys go round a ring of `stages`; Q round one of `buffers` units, each of `slabs`.
struct Rings {
  int slabs, buffers, stages;
  __device__ __forceinline__ int slab(int buffer, int s) const { return buffer * slabs + s; }
};

// A slab is kColumns rows of Q: all heads of some queries, the columns of one product. Behind them are the rows of the
// linear half (linear.cuh), where they make up for the additions that they save.
template <int kHeads_, int kDim_, int kColumns_>
struct Config {
  static constexpr int kHeads = kHeads_, kDim = kDim_, kColumns = kColumns_;
  static constexpr int kTokens = kColumns / kHeads;  // of a slab
  static_assert(kTokens >= 1 && kHeads % 8 == 0 && kDim % 32 == 0);
  static constexpr bool kLinear = kColumns == 128 && kDim == 128 && kHeads >= 32;
  static constexpr int kPieces = 4;
  static constexpr int kRows = kColumns + (kLinear ? kPieces * kTokens : 0);
  static constexpr int kLinearItems = 4 * kTokens;  // at most, of a slab
  // So that in every lane of a quad an accumulator has the same piece of all queries, and in each another.
  __host__ __device__ static constexpr int row_of_piece(int token, int piece) {
    return kColumns + token / 2 * 8 + piece * 2 + token % 2;
  }
  using Mma = decltype(make_tiled_mma(typename Product<kRows>::Op{}));
  static constexpr int kSlabs = 7;  // most of a unit
  // (Paged calls have six, of their turns. With twelve of 64 columns they took 2.5 % longer: memory is slower then.)
  static constexpr int kMaxStages = 7;
  static constexpr int kPoolBytes = 1728 * kDim;  // for stages and slabs
  static constexpr uint32_t kTileBytes = kTileKeys * kDim, kSlabBytes = kRows * kDim;
  // Of the halves of all stages, and of the slabs behind them.
  using KeyLayout =
      decltype(tile_to_shape(typename Rows<kDim>::Atom{}, Shape<Int<kHalf>, Int<kDim>, Int<2 * kMaxStages>>{}));
  using QLayout = decltype(tile_to_shape(typename Rows<kDim>::Atom{}, Shape<Int<kRows>, Int<kDim>, Int<kSlabs>>{}));

  // Two units of Q if there are slabs for them, and as many stages as there is room for, in multiples of `turns`.
  static Rings rings(int slabs, int turns) {
    int const buffers = 2 * slabs <= kSlabs ? 2 : 1;
    int const room = (kPoolBytes - slabs * buffers * int(kSlabBytes)) / int(kTileBytes);
    int const stages = room < kMaxStages ? room : kMaxStages;
    return {slabs, buffers, stages / turns * turns};
  }

  struct SharedStorage {
    alignas(1024) e4m3 pool[kPoolBytes];  // the stages of keys, and behind them the slabs of Q
    alignas(16) float scale[kMaxStages][kTileKeys];
    uint32_t valid[kMaxStages];  // bit i: the tile's box i is in the cache (loaders.cuh)
    // By slab.
    alignas(8) float weight[kSlabs][kColumns];
    // Of the linear half: the unit of a query's weights, and how large an item of it is (bits).
    float unit_weight[kSlabs][kTokens];
    uint32_t most[kSlabs][kLinear ? kLinearItems : 1];
    Range range[kSlabs][kTokens];
    Unit unit[2];
    uint32_t sums[kWarps];
    Start start;  // of this CTA's part
    // barrier           arrives                                          waits
    // full              first lane that loads + bytes; 32 lanes' copies  consumers, before a tile's first product
    // empty             consumer warps, after the tile's last product    the tile's producer
    //                   (12, or 4 where a tile is one consumer's)
    // q_full            as full; its end of work (no tiles) comes so too consumers, before a unit's first product
    // q_empty           12 consumer warps, after the unit's last product the units' producer
    // kStartKnown       of few requests, the keys' producer that has     the others of its warpgroup
    //                   found the part
    // kFirstUnitLoaded  the first consumer, behind the first q_full      the fill warps
    // kLinearHalf       consumers, of a unit: sums are known; written    the same: all, or (ragged, + 0 to 2) each
    //                                                                    consumer's own warps
    Barrier full[kMaxStages], empty[kMaxStages], q_full[2], q_empty[2];

    __device__ __forceinline__ e4m3* keys(int stage) { return pool + stage * int(kTileBytes); }
    __device__ __forceinline__ e4m3* q(Rings const& rings, int slab) {
      return pool + rings.stages * int(kTileBytes) + slab * int(kSlabBytes);
    }
  };
  static_assert(sizeof(SharedStorage) <= 227 * 1024);

  // By one thread, before __syncthreads.
  static __device__ __forceinline__ void init_barriers(SharedStorage& smem, int warps_of_tile) {
    for (int i = 0; i < kMaxStages; ++i) {
      smem.full[i].init(1 + 32);
      smem.empty[i].init(warps_of_tile);
    }
    for (int i = 0; i < 2; ++i) {
      smem.q_full[i].init(1 + 32);
      smem.q_empty[i].init(kConsumerWarps);
    }
    cutlass::arch::fence_barrier_init();
  }
};

template <class Keys, class Ranges_>
struct KernelParams {
  using Ranges = Ranges_;
  IndexerQueries queries;
  Keys keys;
  Blocks<Ranges> blocks;
  Rings rings;
};
using RaggedParams = KernelParams<IndexerKeys, RaggedRanges>;
using PagedParams = KernelParams<PagedIndexerKeys, PagedRanges>;

}  // namespace dsa::sm90::indexer_logits
