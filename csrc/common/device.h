// What an op asks of the device before it launches. Torch-free; linked against the static CUDA runtime only, so that
// the extension loads on machines without a GPU, a driver or a CUDA build of torch.
#pragma once

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdint>

namespace dsa {

// The stream that torch has made current on this device. `import torch` has mapped libtorch_cuda.so already, where
// there is one; its C function is as old as torch 2.10, while the stable ABI's own way begins with 2.13.
inline bool current_stream(int32_t device, void** stream) {
  using Function = int32_t (*)(int32_t, void**);  // 0 is success
  static auto const function = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  return function != nullptr && function(device, stream) == 0;
}

// 9 on Hopper, 10 on Blackwell.
inline cudaError_t compute_major(int device, int* major) {
  return cudaDeviceGetAttribute(major, cudaDevAttrComputeCapabilityMajor, device);
}

}  // namespace dsa
