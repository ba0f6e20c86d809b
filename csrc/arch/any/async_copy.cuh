// Copies of 16 bytes from global to shared memory that go on while the thread does.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace dsa {

// From `global` plus so many bytes to `shared` plus so many; both aligned to 16. (The compiler would keep the sums of
// several copies in registers.)
template <int kGlobalBytes, int kSharedBytes>
__device__ __forceinline__ void copy_async(void* shared, void const* global) {
  auto const to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %3], 16;" ::"r"(to), "l"(global), "n"(kSharedBytes),
               "n"(kGlobalBytes)
               : "memory");
}

// Until the calling thread's copies have arrived; it alone sees them then.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace dsa
