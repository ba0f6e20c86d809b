// Sparse MLA prefill on Blackwell.
#pragma once

#include "arch/any/cluster.cuh"
#include "load.cuh"
#include "mma.cuh"
#include "softmax.cuh"

namespace dsa::sm100::prefill {

template <class Config>
__global__ void __launch_bounds__(kThreads, 1) __cluster_dims__(2, 1, 1)
    sparse_mla_prefill(__grid_constant__ KernelParams const params, __grid_constant__ TensorMaps const maps) {
#ifdef __CUDA_ARCH_FEAT_SM100_ALL
  extern __shared__ __align__(1024) uint8_t raw[];
  auto& smem = *reinterpret_cast<typename Config::SharedStorage*>(raw);
  int const warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  uint32_t const rank = cluster_rank();
  if (threadIdx.x == 0) Config::init_barriers(smem);
  if (warp == kProducts) allocate_tmem<2>(&smem.tmem, kTmemEnd);
  before_tmem_handover();
  __syncthreads();
  cluster_sync();
  after_tmem_handover();

  if (warp < kSoftmaxWarps) {
    Softmax<Config>(params, smem, rank).run();
  } else if (warp == kKeyLoader) {
    KeyLoader<Config>(params, maps, smem, rank).run();
  } else if (warp == kValueLoader) {
    ValueLoader<Config>(params, maps, smem, rank).run();
  } else if (rank == kLeader && elect_one_sync()) {
    Products<Config>(params, smem).run();
  }

  before_tmem_handover();
  __syncwarp();
  cluster_sync();
  after_tmem_handover();
  if (warp == kProducts) free_tmem<2>(smem.tmem, kTmemEnd);
#endif
}

}  // namespace dsa::sm100::prefill
