// Sparse MLA prefill on Hopper, 64 heads of one query a tile.
//
//   producer   | K0 left | K0 right | K1 left | K1 right | K2 left ...          cp.async gather, one barrier a half
//   even       |    S0 = Q K0^T    | softmax0 | O[:, :256] += P0 V0 | ... += P1 V1 |  S2 = Q K2^T  |
//   odd        |         | S1 = Q K1^T |  O[:, 256:] += P0 V0 | softmax1 | O += P1 V1 |  S3 ...
//
// Each consumer scores every other block and adds both blocks to its half of the value columns; the probabilities of
// the other's block come through shared memory. The tensor cores always have work queued: while the even consumer is
// in its softmax the odd one's scores run, and the odd softmax is covered by both consumers' P0 V0. Neither rescales O
// as a rule (attention/softmax_math.cuh), so nothing between two products waits for registers to settle.
//
// CTAs are persistent. Q of the next tile is fetched once the last scores are done, and the next tile's first scores
// run while this one is written out.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include "config.h"
#include "even_consumer.cuh"
#include "odd_consumer.cuh"
#include "producer.cuh"

namespace dsa::sm90::prefill_heads64 {

template <class Config>
__global__ void __launch_bounds__(kThreads, 1)
    sparse_mla_prefill_heads64(__grid_constant__ KernelParams const params, __grid_constant__ TensorMaps const maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& smem = *reinterpret_cast<typename Config::SharedStorage*>(raw);
  if (threadIdx.x == 0) {
    smem.q_full.init(1);
    for (int buffer = 0; buffer < 2; ++buffer)
      for (int half = 0; half < 2; ++half) {
        smem.full[buffer][half].init(128 + (half == kLeft ? 4 : 0));
        smem.empty[buffer][half].init(4);
      }
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();

  int const warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    EvenConsumer<Config>(params, maps, smem).run();
  } else if (warpgroup == 1) {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    OddConsumer<Config>(params, maps, smem).run();
  } else {
    cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
    Producer<Config>(params, smem).run();
  }
#endif
}

}  // namespace dsa::sm90::prefill_heads64
