// Sparse MLA decode on Hopper, 64 heads of one query a tile. attention/sm90/heads64/consumer.cuh draws the pipeline;
// producer.cuh fills its key buffers from a cache.
//
// What bounds it: the producers. A block of 64 keys is 2176 cycles of products, and 32768 conversions of about 380
// instructions a producer warp, which wait for each other, for loads and for stores (docs/design-notes.md has figures).
// Small batches are bound by the latency of one pass through the code.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include "arch/any/dependent_grids.cuh"
#include "attention/sm90/heads64/even_consumer.cuh"
#include "attention/sm90/heads64/odd_consumer.cuh"
#include "launch.h"
#include "producer.cuh"

namespace dsa::sm90::decode_heads64 {

// 2 * (192 + 64) = 512 a lane of four warpgroups: all there are.
constexpr int kConsumerRegisters = 192, kProducerRegisters = 64;

// A warp's arrival for what it has written, a thread's where there are copies.
constexpr int kWritten = kProducerWarps, kCopied = kProducerWarps * 33;
template <class Format>
using Config = heads64::Config<Format::kHeadDim, Format::kNope == 0 ? kCopied : kWritten, kCopied, 128>;

template <class Format>
struct SharedStorage : Config<Format>::SharedStorage {
  KeyWalk walks[kProducerWarps];
  BatchRows<Format> batches[kProducerWarps];
};
static_assert(sizeof(SharedStorage<KvV32>) <= 227 * 1024 && sizeof(SharedStorage<KvV4>) <= 227 * 1024);

// A producer warp's walk lies in shared memory: registers are scarce, and it is looked at once in a few blocks.
class Walk {
 public:
  struct Cursor : KeyWalk {
    __device__ __forceinline__ bool next(DecodeParams const& params, KeyBlock& block, int& consumer) {
      consumer = 0;
      return KeyWalk::next(params, block);
    }
  };

  __device__ __forceinline__ Walk(DecodeParams const& params, KeyWalk (&walks)[kProducerWarps]) : walks_(walks) {
    put(threadIdx.x / 32 % kProducerWarps, threadIdx.x % 32, {KeyWalk(params, DecodeWork::part_of(params))});
  }

  __device__ __forceinline__ Cursor fetch(int warp) const {
    Cursor const cursor{walks_[warp]};
    __syncwarp();  // all lanes have it
    return cursor;
  }
  __device__ __forceinline__ void put(int warp, int lane, Cursor const& cursor) {
    if (lane == 0) walks_[warp] = cursor;
    __syncwarp();
  }

 private:
  KeyWalk (&walks_)[kProducerWarps];
};

// The two key buffers by turns; their halves are the groups.
template <class Config>
struct Sink {
  static constexpr int kAhead = 4;
  static constexpr int kGroups = 2;
  static constexpr int group_begin(int g) { return g * heads64::kHalfTiles; }
  static constexpr int group_end(int g) { return g == 0 ? heads64::kHalfTiles : Config::kTiles; }
  static constexpr int column_tile(int position) { return position; }

  typename Config::SharedStorage& smem;
  uint32_t block = 0;

  __device__ __forceinline__ explicit Sink(typename Config::SharedStorage& smem) : smem(smem) {}

  __device__ __forceinline__ void wait(int, int g) {
    smem.empty[buffer()][g].wait(block / 2 % 2 ^ 1);  // both buffers start out free
  }
  __device__ __forceinline__ bf16* tile(int, int position) { return smem.k[buffer()] + position * kTileElements; }
  __device__ __forceinline__ uint8_t* valid_rows(int) { return reinterpret_cast<uint8_t*>(&smem.valid[buffer()]); }
  __device__ __forceinline__ Barrier& full(int, int g) { return smem.full[buffer()][g]; }
  __device__ __forceinline__ void next_block(int) { ++block; }

 private:
  __device__ __forceinline__ uint32_t buffer() const { return block % 2; }
};

template <class Format>
__global__ void __launch_bounds__(kDecodeThreads, 1)
    sparse_mla_decode_heads64(__grid_constant__ DecodeParams const params, __grid_constant__ TensorMaps const maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Config = Config<Format>;
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& smem = *reinterpret_cast<SharedStorage<Format>*>(raw);
  if (threadIdx.x == 0) Config::init_barriers(smem);
  __syncthreads();
  wait_for_grid_before();
  launch_dependent_grids();

  int const warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    heads64::EvenConsumer<Config, DecodeWork>(params, maps, smem).run();
  } else if (warpgroup == 1) {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    heads64::OddConsumer<Config, DecodeWork>(params, maps, smem).run();
  } else {
    cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
    DecodeProducer<Format, Walk, Sink<Config>>(params, Walk(params, smem.walks), Sink<Config>(smem), smem.batches)
        .run();
  }
#endif
}

template <class Format>
cudaError_t launch(SparseMlaDecodeParams const& p, cudaStream_t stream) {
  return launch_decode(sparse_mla_decode_heads64<Format>, sizeof(SharedStorage<Format>), heads64::kBlockH,
                       heads64::kBlockH / 4, p, stream);
}

}  // namespace dsa::sm90::decode_heads64
