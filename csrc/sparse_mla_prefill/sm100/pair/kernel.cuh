// Sparse MLA prefill on Blackwell, 128 heads of one query a tile, by a pair of CTAs (two neighbouring SMs) with 64
// heads each. Not yet run on hardware: proven in emulation alone, and the figures below are arithmetic.
//
//   key loader    | Q | q_tail | K0 | K1 | K2 |   | K3 |   ...                     | Q' | q_tail' | K0' | ...
//   value loader  | V0 | V1 |                       | V2 |   ...                                    | V0' | ...
//   products          | Q | S0 = Q K0^T | S1 = Q K1^T | O = P0 V0 | S2 | O += P1 V1 | ... O += Pn Vn | Q' | S0' | S1' |
//   O = ... softmax                             | P0          | P1             | P2                          | out |
//   P0' |
//
// The products are the pair's: rows are the heads of both CTAs, and each CTA holds half of the right operand.
//   Q K^T  64 keys: a CTA has 32 of them, whole          P V  512 value columns: a CTA has 256 of them, of all 64 keys
// So half of each CTA's keys are gathered twice, as a key and as values. One copy cannot serve both: of what lies at
// one address in the two CTAs, the first product sums the same column of different keys, the second other columns of
// the same key. Two thirds of Q stay in tensor memory, which is full then: O 256 columns, two blocks' scores 64, Q 192.
// config.h has the barriers. Within a tile Q K^T runs a block ahead of P V; the first two of the next tile cover the
// time in which this one's output is written. O is hardly ever rescaled (attention/softmax_math.cuh).
//
// Cycles of an SM for a block of 64 keys, d 576, and what they would allow on a B200 (148 SMs at 1.85 GHz, 8192 bf16
// operations a cycle and SM; a block is 17.8 M operations of the pair):
//   tensor cores       Q K^T 36 x 16 + P V 8 x 64                                             1088   2243 TFLOPS
//   shared memory      gathered 544, keys read 288, q_tail 192, values 256, p 128 + 64        1472   1658
//   exponentials       64 x 64 / 16                                                            256
//   L2                 69.6 KB: 64 bytes a cycle at 1088 cycles, 43 at 1500 TFLOPS (11.7 TB/s in all)
//   a tile's own       output and first block: about 2000, less 1152 of next scores; at topk 2048 (32 blocks) 2 %
// FlashMLA publishes 1450 TFLOPS for kernels that gather as much a block and start anew for each query. Persistent CTAs
// and the rare rescale should be worth more than the 4 % to 1500; what bounds it then is the shared-memory port, or L2.
#pragma once

#include "arch/any/cluster.cuh"
#include "load.cuh"
#include "mma.cuh"
#include "sparse_mla_prefill/sm100/softmax.cuh"

namespace dsa::sm100::prefill_pair {

template <class Config>
__global__ void __launch_bounds__(kThreads, 1) __cluster_dims__(2, 1, 1)
    sparse_mla_prefill_pair(__grid_constant__ KernelParams const params, __grid_constant__ TensorMaps const maps) {
#if defined(CUTLASS_ARCH_MMA_SM100A_ENABLED) || defined(CUTLASS_ARCH_MMA_SM100F_ENABLED)
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& smem = *reinterpret_cast<typename Config::SharedStorage*>(raw);
  int const warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  uint32_t const rank = cluster_rank();
  if (threadIdx.x == 0) Config::init_barriers(smem);
  if (warp == kProducts) allocate_tmem<2>(&smem.tmem, kTmemEnd);
  __syncwarp();
  cluster_sync();
  after_tmem_handover();  // the other CTA's, for Q

  if (warp < kSoftmaxWarps) {
    Softmax<Config>(params, smem, rank).run();
  } else if (warp == kFirstLoader) {
    KeyLoader<Config>(params, maps, smem, rank).run();
  } else if (warp == kSecondLoader) {
    ValueLoader<Config>(params, maps, smem, rank).run();
  } else if (rank == kLeader && elect_one_sync()) {
    Products<Config>(params, smem).run();
  }

  before_tmem_handover();
  __syncwarp();
  cluster_sync();
  if (warp == kProducts) free_tmem<2>(smem.tmem, kTmemEnd);
#endif
}

}  // namespace dsa::sm100::prefill_pair
