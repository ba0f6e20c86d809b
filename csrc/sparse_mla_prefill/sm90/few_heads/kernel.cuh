// Sparse MLA prefill on Hopper for up to 16 heads. attention/sm90/few_heads/consumer.cuh draws the pipeline; its key
// tiles are gathered here. CTAs are persistent.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include "attention/sm90/few_heads/consumer.cuh"
#include "producer.cuh"
#include "sparse_mla_prefill/sm90/work.cuh"

namespace dsa::sm90::prefill_few_heads {

// Two consumer warpgroups, and a producer warpgroup for each. 2 * (152 + 104) = 512 registers a lane: all there are.
constexpr int kThreads = 512;
constexpr int kConsumerRegisters = 152, kProducerRegisters = 104;

template <class Config>
__global__ void __launch_bounds__(kThreads, 1)
    sparse_mla_prefill_few_heads(__grid_constant__ KernelParams const params, __grid_constant__ TensorMaps const maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& smem = *reinterpret_cast<typename Config::SharedStorage*>(raw);
  if (threadIdx.x == 0) Config::init_barriers(smem);
  __syncthreads();

  int const warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (warpgroup < 2) {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    few_heads::Consumer<Config, Work>(params, maps, smem, warpgroup).run(Work(params, warpgroup));
  } else {
    cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
    Producer<Config>(params, smem, warpgroup - 2).run();
  }
#endif
}

}  // namespace dsa::sm90::prefill_few_heads
