// Sparse MLA prefill on Hopper for up to 16 heads: keys are the rows of the products and heads their columns, so that
// nothing is padded to 64 heads.
//
//   producer     | block 0: stages 0 1 2 | block 1: 0 1 2 | block 2: 3 0 1 | ...     cp.async gather into two rings
//   consumer 0   |    S^T = K0 Q^T | softmax | O^T += V0^T P^T |   S^T = K2 Q^T ...
//   consumer 1        |    S^T = K1 Q^T | softmax | O^T += V1^T P^T |   S^T = K3 Q^T ...
//
// The gather bounds this kernel; the consumers' only task is to give stages back soon. Each takes every other block,
// with references, sums and O of its own, and meets the other at a tile's end only. The four warps of a consumer hold
// different keys of the same heads: they share one reference a head, which moves rarely (attention/softmax_math.cuh),
// and learn of a move with the barrier that they need for the probabilities anyway.
//
// CTAs are persistent: the next tile is gathered while this one ends.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include "config.h"
#include "consumer.cuh"
#include "producer.cuh"

namespace dsa::sm90::prefill_few_heads {

template <class Config>
__global__ void __launch_bounds__(kThreads, 1)
    sparse_mla_prefill_few_heads(__grid_constant__ KernelParams const params, __grid_constant__ TensorMaps const maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& smem = *reinterpret_cast<typename Config::SharedStorage*>(raw);
  if (threadIdx.x == 0) {
    smem.q_full.init(1);
    smem.q_empty.init(8);
    for (int c = 0; c < 2; ++c)
      for (int s = 0; s < Config::kStages; ++s) {
        smem.full[c][s].init(128 + 4);
        smem.empty[c][s].init(4);
      }
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();

  int const warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    Consumer<Config, 0>(params, maps, smem).run();
  } else if (warpgroup == 1) {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    Consumer<Config, 1>(params, maps, smem).run();
  } else {
    cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
    Producer<Config>(params, smem).run();
  }
#endif
}

}  // namespace dsa::sm90::prefill_few_heads
