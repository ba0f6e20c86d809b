// Host side of the 64-head sparse prefill kernel.
#pragma once

#include "kernel.cuh"
#include "sparse_mla_prefill/sm90/launch_tiles.h"

namespace dsa::sm90::prefill_heads64 {

template <int kDQk>
cudaError_t launch(SparseMlaPrefillParams const& p, cudaStream_t stream) {
  return launch_tiles(sparse_mla_prefill_heads64<Config<kDQk>>, kThreads, sizeof(typename Config<kDQk>::SharedStorage),
                      heads64::kBlockH, heads64::kBlockH / 4, p, stream);
}

}  // namespace dsa::sm90::prefill_heads64
