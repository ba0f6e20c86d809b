// Logits of the lightning indexer on Hopper: keys are the rows of the products (M), queries times heads their columns.
//
//   producers    | where the part begins | tile 0 | tile 1 | ...          a warp: TMA, and small copies
//                                        | Q, weights | ...               another
//   consumer 0   |  product 0 | add columns | product 3 | add columns     of half a tile after another
//                                           | finish 0  |                 the quads' sums, scale, range, store
//   consumer 1   the same, while the tensor cores have nothing from 0
//   consumer 2   the same
//   fill         -inf where no query of a block sees a key                two warps
//
// How the consumers share the work:
//   ragged   each has a third of the queries, and all keys. A CTA has 384 columns, so that keys come from L2 only a
//            third as often as with 128: at full rate that is what L2 gives.
//   paged    each takes every third tile, and all queries: there are few, and reading keys is what bounds the kernel.
//
// What bounds it (H200): power. With 64 heads the card holds 1.60 GHz, and a product of 64 keys and 128 columns takes
// 410 cycles of an SM, 256 of them tensor work; sums and products share the registers' ports. Paged, keys of one token
// come at the rate of a copy, 4.2 TB/s, once they come; with two, products take 490 cycles and are as long. One request
// of 128K takes 7.7 us: 1.4 until the first tile is asked for, 1.2 until it is there, 3.3 until the last one is, 0.7
// until the end, 1.1 until the next kernel knows of it.
//
// CTAs are persistent, and each has its part of the line of tiles (schedule.cuh). Every element of the output is
// computed by one warp, in one order: bits do not depend on how the line is cut.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include "arch/any/dependent_grids.cuh"
#include "consumer.cuh"
#include "indexer_logits/fill.cuh"
#include "producer.cuh"

namespace dsa::sm90::indexer_logits {

template <class Config, class Params>
__global__ void __launch_bounds__(kThreads, 1)
    indexer_logits(__grid_constant__ Params const params, __grid_constant__ TensorMaps const maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr bool kSplitQueries = split_queries<typename Params::Ranges>;
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& smem = *reinterpret_cast<typename Config::SharedStorage*>(raw);
  if (threadIdx.x == 0) {
    prefetch_tma_descriptor(&maps.keys);
    prefetch_tma_descriptor(&maps.q);
    Config::init_barriers(smem, kSplitQueries ? kConsumerWarps : kConsumerWarps / kConsumers);
  }
  Finding how = Finding::kFew;
  if (!are_few(params)) {
    wait_for_grid_before();
    how = how_to_find<kWarps>(params);
    if (how == Finding::kSums) add_up(params.blocks, smem.sums);
  }
  __syncthreads();

  int const warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (warpgroup < kConsumers) {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    wait_for_grid_before();
    Consumer<Config, kSplitQueries>(params.queries, params.rings, smem, warpgroup).run();
  } else {
    cutlass::arch::warpgroup_reg_dealloc<kOtherRegisters>();
    int const warp = __shfl_sync(~0u, threadIdx.x % 128 / 32, 0), lane = threadIdx.x % 32;
    if (warp == 0) {
      KeyProducer<Config, Params> producer(params, maps.keys, smem, lane);
      wait_for_grid_before();
      launch_dependent_grids();
      producer.run(how);
    } else if (warp == 1) {
      wait_for_grid_before();
      cutlass::arch::NamedBarrier::arrive_and_wait(kOtherThreads, kStartKnown);
      UnitProducer<Config, Params>{params, maps.q, smem, lane}.run(how);
    } else {
      if constexpr (!kSplitQueries)
        prefetch_tables<kFillWarps>(params.keys, params.queries.batch, warp - kProducers, lane);
      wait_for_grid_before();
      cutlass::arch::NamedBarrier::arrive_and_wait(kOtherThreads, kStartKnown);
      fill<kFillWarps>(params, warp - kProducers);
    }
  }
#endif
}

}  // namespace dsa::sm90::indexer_logits
