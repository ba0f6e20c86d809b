// Logits of the lightning indexer on Hopper: keys are the rows of the products (M), queries times heads their columns.
//
//   producers    | where the part begins | tile 0 | tile 1 | ...          a warp, or two by turns: TMA, small copies
//                                        | Q, weights | ...               another
//   consumers    | linear half of a unit's slabs |                        columns beside heads' (linear.cuh)
//   consumer 0   |  product 0 | add columns | product 3 | add columns     of half a tile after another
//                                           | finish 0  |                 the quads' sums, scale, range, store
//   consumer 1   the same, while the tensor cores have nothing from 0
//   consumer 2   the same
//   fill         -inf where no query of a block sees a key                two warps, or one
//
// How the consumers share the work:
//   ragged   each has a third of the queries, and all keys. A CTA has 384 columns, so that keys come from L2 only a
//            third as often as with 128: at full rate that is what L2 gives.
//   paged    each takes every third tile, and all queries: there are few, and reading keys is what bounds the kernel.
//
// What bounds it (H200): with 64 heads power, 690 W at 1.61 GHz: a product of 64 keys and 128 columns (136, linear.cuh)
// takes 365 cycles of an SM, 272 of them tensor work. With 32 heads (144 columns, 560 W, 1.65 GHz) it takes 425, 288 of
// them tensor work: a consumer's own instructions, 170 a product with the logits of twice as many queries. Paged, keys
// of one token come at the rate of a copy, 4.2 TB/s, once they come. One request of 128K takes 7.4 us: 2.2 until the
// first tile is there, 3.5 until the end, 1.7 until the next kernel knows of it. A ragged call's start is code and
// reads that all CTAs fetch at once (start.cuh): with 4096 queries it takes 2 us until a CTA knows its part.
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
  bool const few = are_few(params);
  if (!few) {
    Divisor const parts(gridDim.x);
    if constexpr (kSplitQueries)
      prefetch_tables<kWarps>(params.queries, params.keys, threadIdx.x / 32, threadIdx.x % 32);
    wait_for_grid_before();
    find_start(params, parts, smem.sums, smem.start);
  }
  __syncthreads();

  int const warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (warpgroup < kConsumers) {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    wait_for_grid_before();
    Consumer<Config, typename Params::Ranges>(params.queries, params.blocks.ranges, params.rings, smem, warpgroup,
                                              log2_box(params))
        .run();
  } else {
    cutlass::arch::warpgroup_reg_dealloc<kOtherRegisters>();
    int const warp = __shfl_sync(~0u, threadIdx.x % 128 / 32, 0), lane = threadIdx.x % 32;
    constexpr int kFillWarps = fill_warps<Config, typename Params::Ranges>;
    bool const fills = warp >= 4 - kFillWarps;
    KeyProducer<Config, Params> keys(params, maps.keys, smem, warp / 2, lane);  // of warp 0, and of 2 if there are two
    if constexpr (!kSplitQueries)
      if (fills) prefetch_tables<kFillWarps>(params.queries, params.keys, 3 - warp, lane);
    wait_for_grid_before();
    if (warp == 0) launch_dependent_grids();
    if (few && warp == 0) keys.find_start();
    if (few && warp != 0) cutlass::arch::NamedBarrier::arrive_and_wait(kOtherThreads, kStartKnown);
    if (warp == 1) {
      UnitProducer<Config, Params>{params, maps.q, smem, lane}.run();
    } else if (fills) {
      // Else its stores are ahead of the first loads in the queues to memory.
      cutlass::arch::NamedBarrier::arrive_and_wait(kFirstUnitThreads<Config, typename Params::Ranges>,
                                                   kFirstUnitLoaded);
      fill<kFillWarps>(params, 3 - warp);
    } else {
      keys.run();
    }
  }
#endif
}

}  // namespace dsa::sm90::indexer_logits
