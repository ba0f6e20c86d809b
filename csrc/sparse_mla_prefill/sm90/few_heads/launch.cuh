// Host side of the sparse prefill kernel for few heads.
#pragma once

#include "kernel.cuh"
#include "sparse_mla_prefill/sm90/launch_tiles.h"

namespace dsa::sm90::prefill_few_heads {

template <int kDQk, int kHeads>
cudaError_t launch(SparseMlaPrefillParams const& p, cudaStream_t stream) {
  using Config = few_heads::Config<kDQk, kHeads, 4, few_heads::kAllTiles>;
  return launch_tiles(sparse_mla_prefill_few_heads<Config>, kThreads, sizeof(typename Config::SharedStorage),
                      Config::kHeads, Config::kHeads, p, stream);
}

}  // namespace dsa::sm90::prefill_few_heads
