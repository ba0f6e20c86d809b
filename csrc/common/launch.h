// Programmatic dependent launch.
#pragma once

#include <cuda_runtime_api.h>

namespace dsa {

struct Grid {
  int ctas, threads;
  int cluster = 1;
};

// Starts a kernel while the one before it in the stream ends. It waits for that end itself, by wait_for_grid_before
// (arch/any/dependent_grids.cuh), before it touches any memory.
template <class... Params>
cudaError_t launch_early(void (*kernel)(Params...), Grid const& grid, int shared_bytes, cudaStream_t stream,
                         Params const&... params) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {unsigned(grid.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(grid.ctas));
  config.blockDim = dim3(unsigned(grid.threads));
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = grid.cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, params...);
}

}  // namespace dsa
