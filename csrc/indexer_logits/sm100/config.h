// Tiles, shared memory, tensor memory and barriers of the indexer logits on Blackwell. kernel.cuh draws the pipeline.
#pragma once

#include <cuda.h>
#include <cutlass/arch/barrier.h>

#include <cute/tensor.hpp>

#include "arch/sm100/tmem.cuh"
#include "arch/sm100/umma.cuh"
#include "indexer_logits/loaders.cuh"

namespace dsa::sm100::indexer_logits {

using namespace cute;
using namespace dsa::indexer;
using e4m3 = cutlass::float_e4m3_t;

// Warps 0 to 3: producer, products, two that fill. Four warpgroups follow that sum.
constexpr int kSumGroups = 4, kFillWarps = 2;
constexpr int kThreads = 128 * (1 + kSumGroups), kWarps = kThreads / 32;
constexpr int kSumWarps = 4 * kSumGroups, kWarpsOfGroup = 4;

// Registers go from the first warpgroup to the others. What a CTA starts with is all that there is: were it less than
// they ask for, they would wait forever.
constexpr int kSumRegisters = 104;
constexpr int kOtherRegisters = 64;
constexpr int kStartRegisters = 65536 / kThreads / 8 * 8;
static_assert(kOtherRegisters + kSumGroups * kSumRegisters <= (1 + kSumGroups) * kStartRegisters);

constexpr int kColumns = 256;     // of a product at most: queries times heads
constexpr int kPartColumns = 64;  // that a warpgroup sums
constexpr int kLoadColumns = 16;  // that a thread has in registers at a time
static_assert(kTileKeys == kTmemLanes && kPartColumns * kSumGroups == kColumns);

struct TensorMaps {
  CUtensorMap q, keys;
};

// A row of kDim codes is as wide as the swizzle, so that eight rows are one atom.
template <int kDim>
struct Rows;
template <>
struct Rows<128> {
  using Atom = UMMA::Layout_K_SW128_Atom<e4m3>;
  static constexpr CUtensorMapSwizzle kSwizzle = CU_TENSOR_MAP_SWIZZLE_128B;
};
template <>
struct Rows<64> {
  using Atom = UMMA::Layout_K_SW64_Atom<e4m3>;
  static constexpr CUtensorMapSwizzle kSwizzle = CU_TENSOR_MAP_SWIZZLE_64B;
};
template <>
struct Rows<32> {
  using Atom = UMMA::Layout_K_SW32_Atom<e4m3>;
  static constexpr CUtensorMapSwizzle kSwizzle = CU_TENSOR_MAP_SWIZZLE_32B;
};

constexpr int kLog2MaxSlots = 3, kMaxSlots = 1 << kLog2MaxSlots;
static_assert(kMaxSlots * kPartColumns == kTmemColumns);

// How the columns of a launch's products, as many as its blocks have queries times heads, are shared: parts of
// kPartColumns, each with a warpgroup of its own; where there are fewer parts than warpgroups, these take tiles by
// turns. In tensor memory tiles go round a ring of slots. Tile n of a CTA: its turn, its slot, the slot's parity.
struct Split {
  int log2_parts;  // 0, 1, 2
  __host__ __device__ __forceinline__ int parts() const { return 1 << log2_parts; }
  __host__ __device__ __forceinline__ int columns() const { return kPartColumns << log2_parts; }
  __device__ __forceinline__ int turns() const { return kSumGroups >> log2_parts; }
  __device__ __forceinline__ int slots() const { return kMaxSlots >> log2_parts; }
  __device__ __forceinline__ int slot(int n) const { return n & (slots() - 1); }
  __device__ __forceinline__ uint32_t parity(int n) const { return n >> (kLog2MaxSlots - log2_parts) & 1; }
};

template <int kHeads_, int kDim_>
struct Config {
  static constexpr int kHeads = kHeads_, kDim = kDim_;
  static constexpr int kTokens = kColumns / kHeads;          // of a block at most
  static constexpr int kPartTokens = kPartColumns / kHeads;  // of a part
  static_assert(kPartTokens >= 1 && kHeads % 8 == 0 && kDim % kUmmaK<e4m3> == 0);
  using KeyLayout = decltype(tile_to_shape(typename Rows<kDim>::Atom{}, Shape<Int<kTileKeys>, Int<kDim>>{}));
  using QLayout = decltype(tile_to_shape(typename Rows<kDim>::Atom{}, Shape<Int<kColumns>, Int<kDim>>{}));

  static constexpr int kStages = 8, kUnits = 2;
  static_assert(kStages % kSumGroups == 0);  // a stage is always the same warpgroups' turn
  static constexpr uint32_t kTileBytes = kTileKeys * kDim, kQBytes = kColumns * kDim;

  struct SharedStorage {
    alignas(1024) e4m3 tiles[kStages][kTileKeys * kDim];
    alignas(1024) e4m3 q[kUnits][kColumns * kDim];
    alignas(16) float scale[kStages][kTileKeys];
    alignas(16) float weight[kUnits][kColumns];
    uint32_t valid[kStages];  // bit i: the tile's box i is in the cache (loaders.cuh)
    alignas(8) Range range[kUnits][kTokens];
    Unit unit[kUnits];
    uint32_t sums[kWarps];
    Start start;  // of this CTA's part
    // barrier     arrives                                              waits
    // full        producer's first lane + bytes; 32 lanes' copies      products; the sums, for the scales
    // empty       commit of the tile's products; the warps that sum    producer
    //             it, when they have its scales
    // q_full      as full; its end of work (no tiles) comes so too     products; all warps that sum
    // q_empty     commit of the unit's products; the thread that       producer
    //             issues them and all warps that sum, when they have
    //             read what the unit is
    // acc_full    commit of the tile's products                        the warps that sum it
    // acc_empty   those, when they have loaded it                      products
    Barrier full[kStages], empty[kStages], q_full[kUnits], q_empty[kUnits], acc_full[kMaxSlots], acc_empty[kMaxSlots];
    uint32_t tmem;  // its address

    __device__ __forceinline__ e4m3* keys(int stage) { return tiles[stage]; }
  };
  static_assert(sizeof(SharedStorage) <= 227 * 1024);

  // By one thread, before __syncthreads.
  static __device__ __forceinline__ void init_barriers(SharedStorage& smem, Split split) {
    for (int i = 0; i < kStages; ++i) {
      smem.full[i].init(1 + 32);
      smem.empty[i].init(1 + kWarpsOfGroup * split.parts());
    }
    for (int i = 0; i < kUnits; ++i) {
      smem.q_full[i].init(1 + 32);
      smem.q_empty[i].init(2 + kSumWarps);
    }
    for (int i = 0; i < kMaxSlots; ++i) {
      smem.acc_full[i].init(1);
      smem.acc_empty[i].init(kWarpsOfGroup * split.parts());
    }
    cutlass::arch::fence_barrier_init();
  }
};

// A ring's buffer that is next, and the parity of its barriers to wait for.
template <int kCount>
struct RingPlace {
  int index = 0;
  uint32_t phase;
  __device__ __forceinline__ void advance() {
    if (++index == kCount) {
      index = 0;
      phase ^= 1;
    }
  }
};

template <class Keys, class Ranges_>
struct KernelParams {
  using Ranges = Ranges_;
  IndexerQueries queries;
  Keys keys;
  Blocks<Ranges> blocks;
  Split split;
};
using RaggedParams = KernelParams<IndexerKeys, RaggedRanges>;
using PagedParams = KernelParams<PagedIndexerKeys, PagedRanges>;

}  // namespace dsa::sm100::indexer_logits
