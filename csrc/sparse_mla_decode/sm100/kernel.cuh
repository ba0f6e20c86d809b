// Sparse MLA decode on Blackwell: up to 64 heads of a query a tile by a CTA, or 128 by a pair of CTAs (two neighbouring
// SMs) with 64 heads each, in one pass over the keys. Not yet run on hardware: proven in emulation alone, and the
// figures below are arithmetic.
//
//   Q loader      | Q 0-2 | Q 3-5 | tail |        | Q' 0-2 |  ...
//   converters    | K0 V0 | K1 V1 |      | K2 V2 |      ...             codes and scales of the cache, to bf16
//   products              | Q | S0 = Q K0^T | S1 = Q K1^T | O = P0 V0 | S2 | O += P1 V1 | ... O += Pn Vn | Q' | S0' |
//   ... softmax                             | P0          | P1             | P2                          | out     |
//   P0'
//
// Every key is converted once. A CTA alone reads its values from where the keys are. Of a pair, each CTA converts half
// of the keys: whole, as its rows of K; and as values, whose columns are divided, half of them in the other CTA's
// shared memory. Two thirds of Q stay in tensor memory, which is full then: O 256 columns, two blocks' scores 64, Q
// 192. config.h has the barriers. Within a tile Q K^T runs a block ahead of P V; the converters do not stop between
// tiles. O is hardly ever rescaled (attention/softmax_math.cuh). The workers' shares, and how they are added up:
// plan.h.
//
// Cycles of an SM for a block of 64 keys of v32, and what they would allow on a B200 (148 SMs at 1.85 GHz; a block is
// 8.9 M operations of an SM). Instructions are those of whole warps, as compiled, four a cycle.
// A pair:
//   tensor cores       Q K^T 36 x 16 + P V 8 x 64                                             1088   2243 TFLOPS
//   shared memory      written 288 + 256, keys read 288, q_tail 192, values 256, p 128 + 64   1472   1658
//   instructions       (8 converter warps x 420 + 4 softmax warps x 360) / 4                  1200
//   a value buffer     conversion, Q K^T, softmax, P V, and between them: 2500, of 3           850
//   exponentials       64 x 64 / 16                                                            256
//   the other CTA      16 KB each way: 11 bytes a cycle
//   L2                 21 KB: 14 bytes a cycle
// A CTA alone:
//   tensor cores       Q K^T 36 x 32 + P V 8 x 128, if 64 rows take as long as 128            2176   1121 TFLOPS
//   shared memory      written 576, keys read 576, q_tail 192, values 512, p 128 + 64         2048   1191
//   instructions       (8 x 550 + 4 x 360) / 4                                                1460
//   a key buffer       as above: 3800, of 2                                                   1900
//   L2                 42 KB: 19 bytes a cycle
// 256 queries of 128 heads and 2048 keys are 146 G operations and 344 MB: 88 us by the pair's shared memory, 43 us by
// 8 TB/s. FlashMLA publishes 350 TFLOPS, for two passes over the keys, each of which converts all of them; 700 would
// leave the pair 3490 cycles a block. To measure first: the converters' time a block, and stores to the other CTA.
#pragma once

#include "arch/any/cluster.cuh"
#include "arch/any/dependent_grids.cuh"
#include "convert.cuh"
#include "load_q.cuh"
#include "mma.cuh"
#include "softmax.cuh"

namespace dsa::sm100::decode {

template <class Config>
__global__ void __launch_bounds__(kThreads, 1) __cluster_dims__(Config::kCtas, 1, 1)
    sparse_mla_decode(__grid_constant__ DecodeParams const params, __grid_constant__ CUtensorMap const q_map) {
#if defined(CUTLASS_ARCH_MMA_SM100A_ENABLED) || defined(CUTLASS_ARCH_MMA_SM100F_ENABLED)
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& smem = *reinterpret_cast<typename Config::SharedStorage*>(raw);
  int const warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  uint32_t const rank = Config::kPair ? cluster_rank() : kLeader;
  if (threadIdx.x == 0) Config::init_barriers(smem);
  if (warp == kProducts) allocate_tmem<Config::kCtas>(&smem.tmem, kTmemEnd);
  __syncwarp();
  cluster_arrive();
  cluster_wait();
  if constexpr (Config::kPair) after_tmem_handover();  // the other CTA's, for Q
  wait_for_grid_before();
  launch_dependent_grids();

  if (warp < kFirstConverter) {
    Softmax<Config>(params, smem).run();
  } else if (warp < kQLoader) {
    bool const odd = (warp - kFirstConverter) * 8 >= Config::kOwnKeys;
    if (Config::kPair && odd)
      Converter<Config, Config::kCtas - 1>(params, smem, rank).run();
    else
      Converter<Config, 0>(params, smem, rank).run();
  } else if (warp == kQLoader) {
    QLoader<Config>(params, q_map, smem, rank).run();
  } else if (rank == kLeader && elect_one_sync()) {
    Products<Config>(params, smem).run();
  }

  before_tmem_handover();
  __syncwarp();
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x / 32 == kProducts) free_tmem<Config::kCtas>(smem.tmem, kTmemEnd);
#endif
}

}  // namespace dsa::sm100::decode
