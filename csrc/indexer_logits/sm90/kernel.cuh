// Logits of the lightning indexer on Hopper: keys are the rows of the products (M), queries times heads their columns.
//
//   producer     | Q, weights | tile 0 | tile 1 | ...                     one warp: TMA, and small copies
//   consumer 0   |  product 0  | product 1  | product 2  | ...            of one tile after another; two accumulators:
//                              | sum heads 0 | sum heads 1 | ...          one is worked on while the other is filled
//   consumer 1   the same
//   fill         -inf where no query of a block sees a key                three warps
//
// How the consumers share the work:
//   ragged   each has half of the queries, and all keys. A CTA has 256 columns, so that keys come from L2 only half as
//            often as with 128: at full rate that is what L2 gives.
//   paged    each takes every second tile, and all queries: there are few, and reading keys is what bounds the kernel.
//
// CTAs are persistent, and each has its part of the line of tiles (schedule.cuh). Every element of the output is
// computed by one warp, in one order: bits do not depend on how the line is cut.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include "arch/any/dependent_grids.cuh"
#include "consumer.cuh"
#include "fill.cuh"
#include "producer.cuh"

namespace dsa::sm90::indexer_logits {

// Whether there is a plan to follow. For so few blocks that one read a lane adds them up, a CTA has found its part
// before it has read a plan.
template <class Params>
__device__ __forceinline__ bool has_plan(Params const& params) {
  if constexpr (requires { params.keys.plan; }) {
    int const count = params.blocks.count();
    return count > kThreads && is_for(params.keys.plan, count, gridDim.x);
  } else {
    return false;
  }
}

// The part of the line that this CTA has; by the producer warp, after add_up if there is no plan.
template <class Params, class Shared>
__device__ __forceinline__ Part my_part(Params const& params, Shared const& smem, bool planned) {
  if constexpr (requires { params.keys.plan; })
    if (planned) return planned_part(params.keys.plan, blockIdx.x, params.blocks.count());
  return find_part(params.blocks, smem.sums, blockIdx.x, gridDim.x);
}

template <class Config, class Params>
__global__ void __launch_bounds__(kThreads, 1)
    indexer_logits(__grid_constant__ Params const params, __grid_constant__ TensorMaps const maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Loader = typename LoaderOf<Params>::template Loader<Config>;
  constexpr bool kSplitQueries = Loader::kSplitQueries;
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& smem = *reinterpret_cast<typename Config::SharedStorage*>(raw);
  if (threadIdx.x == 0) {
    prefetch_tma_descriptor(&maps.keys);
    prefetch_tma_descriptor(&maps.q);
    Config::init_barriers(smem, kSplitQueries ? kConsumerWarps : kConsumerWarps / 2);
  }
  wait_for_grid_before();
  launch_dependent_grids();
  bool const planned = has_plan(params);
  if (!planned) add_up(params.blocks, smem.sums);
  __syncthreads();

  int const warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (warpgroup < 2) {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    Consumer<Config, kSplitQueries>(params.queries, params.ring, smem, warpgroup).run();
  } else {
    cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
    int const warp = __shfl_sync(~0u, threadIdx.x % 128 / 32, 0);
    if (warp == 0)
      Producer<Config, Loader, Params>(params, maps, smem).run(my_part(params, smem, planned));
    else
      fill(params, warp - 1);
  }
#endif
}

}  // namespace dsa::sm90::indexer_logits
