// Sparse MLA prefill on Blackwell, up to 64 heads of one query a tile. Not yet run on hardware: proven in emulation
// alone, and the figures below are arithmetic.
//
//   left loader   | Q 0-3 | L0 | L1 |    | L2 |   ...                      L: columns [0, 256) of a block's keys
//   right loader  | Q 4-5, q_tail | r0 R0 | r1 R1 |   | r2 R2 |   ...      R: [256, 512), r: [512, 576)
//   products      | Q | S0 = Q K0^T | S1 = Q K1^T | O = P0 V0 | S2 | O += P1 V1 | ... O += Pn Vn | Q' | S0' | S1' | O =
//   ... softmax                         | P0          | P1             | P2                          | out     | P0' |
//
// Keys are gathered once: L and R are both what Q K^T and what P V reads. They are released one after the other, after
// P V of their columns. Two thirds of Q stay in tensor memory, which is full then: O 256 columns, two blocks' scores
// 64, Q 192. config.h has the barriers. Within a tile Q K^T runs a block ahead of P V; the first two of the next tile
// cover the time in which this one's output is written. O is hardly ever rescaled (attention/softmax_math.cuh).
//
// Cycles of an SM for a block of 64 keys, d 576, and what they would allow on a B200 (148 SMs at 1.85 GHz; a block is
// 8.9 M operations):
//   tensor cores       Q K^T 36 x 32 + P V 8 x 128, if 64 rows take as long as 128            2176   1121 TFLOPS
//   shared memory      gathered 576, keys read 576, q_tail 192, values 512, p 128 + 64        2048   1191
//   exponentials       64 x 64 / 16                                                            256
//   L2                 73.7 KB: 34 bytes a cycle
// Rows of two queries cannot share a product, since their keys differ; and keys as rows would be read from shared
// memory for both products at 4 KB in 32 cycles, which costs as much. Fewer heads than 64 cost as much as 64.
#pragma once

#include "load.cuh"
#include "mma.cuh"
#include "sparse_mla_prefill/sm100/softmax.cuh"

namespace dsa::sm100::prefill_heads64 {

template <class Config>
__global__ void __launch_bounds__(kThreads, 1)
    sparse_mla_prefill_heads64(__grid_constant__ KernelParams const params, __grid_constant__ TensorMaps const maps) {
#if defined(CUTLASS_ARCH_MMA_SM100A_ENABLED) || defined(CUTLASS_ARCH_MMA_SM100F_ENABLED)
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& smem = *reinterpret_cast<typename Config::SharedStorage*>(raw);
  int const warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  if (threadIdx.x == 0) Config::init_barriers(smem);
  if (warp == kProducts) allocate_tmem<1>(&smem.tmem, kTmemEnd);
  __syncthreads();

  if (warp < kSoftmaxWarps) {
    Softmax<Config>(params, smem, 0).run();
  } else if (warp == kFirstLoader) {
    LeftLoader<Config>(params, maps, smem).run();
  } else if (warp == kSecondLoader) {
    RightLoader<Config>(params, maps, smem).run();
  } else if (elect_one_sync()) {
    Products<Config>(params, smem).run();
  }

  before_tmem_handover();
  __syncthreads();
  if (warp == kProducts) free_tmem<1>(smem.tmem, kTmemEnd);
#endif
}

}  // namespace dsa::sm100::prefill_heads64
