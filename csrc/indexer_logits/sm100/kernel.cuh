// Logits of the lightning indexer on Blackwell: keys are the rows of the products (M), queries times heads their
// columns (N, up to 256), and the sums of a product lie in tensor memory: a thread has one key, all columns are its.
//
//   producer    | Q, weights | tile 0 | tile 1 | ...                        one warp: TMA, and small copies
//   products           | tile 0 | tile 1 | ...                              one thread
//   sums                        | tile 0 | tile 1 | ...                     four warpgroups, 64 columns each
//   fill        -inf where no query of a block sees a key                   two warps
//
// Tensor memory holds two tiles of 256 columns, so that one is summed while the next is computed. Blocks with fewer
// columns (decode) have narrower products, more tiles in tensor memory, and warpgroups that take tiles by turns.
//
// CTAs are persistent, and each has its part of the line of tiles (schedule.cuh). Every element of the output is
// computed by one thread, in one order: bits do not depend on how the line is cut.
//
// On paper (no B200 has run this): cycles an SM takes for a tile of 128 keys and 256 columns, d = 128.
//
//   tensor cores    4 products of 128 x 256 x 32, 8192 multiply-adds a clock                         512
//   shared memory   operands, 4 x 12 KB, and the tile's arrival, 16 KB, at 128 B a clock             512
//   FMA units       16K additions and 32K multiply-adds, 128 a clock                                 384
//   ALU             16K maxima, 64 a clock                                                           256
//   issue slots     three instructions for two elements, and 5 % for the rest, 4 a clock             400
//   TMEM reads      128 KB, at 128 B a clock and quarter (assumed)                                   256
//   L2              16.5 KB, ragged: 33 B a clock at the tensor cores' pace (8.9 TB/s)
//   HBM             16.5 KB, paged, at 8 TB/s: 29 B a clock                                          580
//
// So the ragged form can run at the fp8 rate (4.5 PFLOPS: 4096 queries of 64 heads on 16K keys in 244 us) as far as
// shared memory and L2 give it: a pair of CTAs that share Q (M = 256) would halve what Q takes of the former, tiles
// that two CTAs receive together (multicast) the latter. The paged form is bound by HBM for up to 256 columns. More
// tokens than that are several blocks, which read the keys again, mostly from L2: the tensor cores take 512 cycles a
// block then, as long as the memory does.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include "indexer_logits/fill.cuh"
#include "mma.cuh"
#include "producer.cuh"
#include "sums.cuh"

namespace dsa::sm100::indexer_logits {

template <class Config, class Params>
__global__ void __launch_bounds__(kThreads, 1)
    indexer_logits(__grid_constant__ Params const params, __grid_constant__ TensorMaps const maps) {
#ifdef CUTE_ARCH_TCGEN05_TMEM_ENABLED
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& smem = *reinterpret_cast<typename Config::SharedStorage*>(raw);
  int const warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  if (!are_few(params)) find_start(params, Divisor(gridDim.x), smem.sums, smem.start);
  if (threadIdx.x == 0) {
    prefetch_tma_descriptor(&maps.keys);
    prefetch_tma_descriptor(&maps.q);
    Config::init_barriers(smem, params.split);
  }
  if (warp == 1) allocate_tmem(&smem.tmem, kTmemColumns);
  __syncthreads();

  if (warp >= 4) {
    cutlass::arch::warpgroup_reg_alloc<kSumRegisters>();
    Sums<Config>(params.queries, params.split, smem, warp / 4 - 1, log2_box(params)).run();
  } else {
    cutlass::arch::warpgroup_reg_dealloc<kOtherRegisters>();
    if (warp == 0)
      Producer<Config, Params>(params, maps, smem).run();
    else if (warp == 1)
      Products<Config>{params.split, smem}.run();
    else
      fill<kFillWarps>(params, warp - 2);
  }
#endif
}

}  // namespace dsa::sm100::indexer_logits
