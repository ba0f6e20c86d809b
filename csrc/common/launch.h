// Programmatic dependent launch.
#pragma once

#include <cuda_runtime_api.h>

namespace dsa {

// Starts a kernel while the one before it in the stream ends. It waits for that end itself, by wait_for_grid_before
// (arch/any/dependent_grids.cuh), before it touches any memory.
template <class... Params>
cudaError_t launch_early(void (*kernel)(Params...), int ctas, int threads, int shared_bytes, cudaStream_t stream,
                         Params const&... params) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(ctas));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, params...);
}

}  // namespace dsa
