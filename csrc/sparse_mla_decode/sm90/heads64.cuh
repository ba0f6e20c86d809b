// Sparse MLA decode on Hopper, 64 heads of one query a tile. attention/sm90/heads64/consumer.cuh draws the pipeline;
// producer.cuh fills its key buffers from a cache.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include "arch/any/dependent_grids.cuh"
#include "attention/sm90/heads64/even_consumer.cuh"
#include "attention/sm90/heads64/odd_consumer.cuh"
#include "launch.h"
#include "producer.cuh"

namespace dsa::sm90::decode_heads64 {

// The producer holds the next codes in registers. 2 * 192 + 120 = 504 of 512 a lane of three warpgroups.
constexpr int kConsumerRegisters = 192, kProducerRegisters = 120;

// A warp's arrival for what it has written, 128 threads' where there are copies.
template <class Format>
using Config = heads64::Config<Format::kHeadDim, Format::kNope == 0 ? 4 + 128 : 4, 4 + 128>;

struct Walk : KeyWalk {
  __device__ __forceinline__ explicit Walk(DecodeParams const& params) : KeyWalk(params, DecodeWork(params)) {}
  __device__ __forceinline__ int consumer() const { return 0; }
};

// The two key buffers by turns; their halves are the groups.
template <class Config>
struct Sink {
  static constexpr int kGroups = 2;
  static constexpr int group_begin(int g) { return g * heads64::kHalfTiles; }
  static constexpr int group_end(int g) { return g == 0 ? heads64::kHalfTiles : Config::kTiles; }
  static constexpr int column_tile(int position) { return position; }

  typename Config::SharedStorage& smem;
  int buffer = 0;
  uint32_t phase = 1;  // both buffers start out free

  __device__ __forceinline__ explicit Sink(typename Config::SharedStorage& smem) : smem(smem) {}

  __device__ __forceinline__ void wait(int, int g) { smem.empty[buffer][g].wait(phase); }
  __device__ __forceinline__ bf16* tile(int, int position) { return smem.k[buffer] + position * kTileElements; }
  __device__ __forceinline__ uint16_t* valid_rows(int) { return reinterpret_cast<uint16_t*>(&smem.valid[buffer]); }
  __device__ __forceinline__ Barrier& full(int, int g) { return smem.full[buffer][g]; }
  __device__ __forceinline__ void next_block(int) {
    buffer ^= 1;
    phase ^= uint32_t(buffer == 0);
  }
};

template <class Format>
__global__ void __launch_bounds__(kThreads, 1)
    sparse_mla_decode_heads64(__grid_constant__ DecodeParams const params, __grid_constant__ TensorMaps const maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Config = Config<Format>;
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& smem = *reinterpret_cast<typename Config::SharedStorage*>(raw);
  if (threadIdx.x == 0) Config::init_barriers(smem);
  __syncthreads();
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
    DecodeProducer<Format, Walk, Sink<Config>>(params, Walk(params), Sink<Config>(smem)).run();
  }
#endif
}

template <class Format>
cudaError_t launch(SparseMlaDecodeParams const& p, cudaStream_t stream) {
  return launch_decode(sparse_mla_decode_heads64<Format>, sizeof(typename Config<Format>::SharedStorage),
                       heads64::kBlockH, heads64::kBlockH / 4, p, stream);
}

}  // namespace dsa::sm90::decode_heads64
