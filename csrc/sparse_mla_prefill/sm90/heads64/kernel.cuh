// Sparse MLA prefill on Hopper, 64 heads of one query a tile. attention/sm90/heads64/consumer.cuh draws the pipeline;
// its keys are gathered here. CTAs are persistent.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include "attention/sm90/heads64/even_consumer.cuh"
#include "attention/sm90/heads64/odd_consumer.cuh"
#include "producer.cuh"
#include "sparse_mla_prefill/sm90/work.cuh"

namespace dsa::sm90::prefill_heads64 {

template <class Config>
__global__ void __launch_bounds__(kThreads, 1)
    sparse_mla_prefill_heads64(__grid_constant__ KernelParams const params, __grid_constant__ TensorMaps const maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& smem = *reinterpret_cast<typename Config::SharedStorage*>(raw);
  if (threadIdx.x == 0) Config::init_barriers(smem);
  __syncthreads();

  int const warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (warpgroup < 2) {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    typename heads64::Consumer<Config, Work>::FragO rO;
    if (warpgroup == 0)
      heads64::EvenConsumer<Config, Work>(params, maps, smem, rO).run(Work(params));
    else
      heads64::OddConsumer<Config, Work>(params, maps, smem, rO).run(Work(params));
  } else {
    cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
    Producer<Config>(params, smem).run();
  }
#endif
}

}  // namespace dsa::sm90::prefill_heads64
