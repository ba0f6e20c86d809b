// Host side of the kernel.
#pragma once

#include "kernel.cuh"
#include "sparse_mla_prefill/sm100/launch_tiles.h"

namespace dsa::sm100::prefill_pair {

template <int kDQk>
cudaError_t launch(SparseMlaPrefillParams const& p, cudaStream_t stream) {
  using Config = prefill_pair::Config<kDQk>;
  return launch_tiles(sparse_mla_prefill_pair<Config>, Config::kCtas, sizeof(typename Config::SharedStorage), p,
                      stream);
}

}  // namespace dsa::sm100::prefill_pair
