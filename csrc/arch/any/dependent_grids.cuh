// Programmatic dependent launch: the next kernel of the stream starts while this one still runs.
#pragma once

namespace dsa {

// The next kernel's CTAs may take the places that this grid leaves.
__device__ __forceinline__ void launch_dependent_grids() { asm volatile("griddepcontrol.launch_dependents;"); }

// Until the kernel before has ended and what it wrote can be read. At once, if this one was launched the usual way.
__device__ __forceinline__ void wait_for_grid_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// What look_up() gives a CTA's first warp when the kernel before has ended, for all threads: every `lanes` lanes find
// one of `results`, in shared memory. (One warp: all warps of all CTAs that read one place wait for each other, some 2
// us.) It is called before that, too, so that what it needs is in the caches then: its code, constants, pages of
// memory. So it must read with load_past_l1 alone: L1 would keep old values.
// again: whether the kernel before may have changed it.
template <class LookUp, class Result>
__device__ __forceinline__ void look_up_after_grid_before(LookUp const& look_up, Result* results, int lanes,
                                                          bool again) {
  if (threadIdx.x < 32) {
    Result result;
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      if (i == 1) wait_for_grid_before();
      if (i == 0 || again) result = look_up();
    }
    if (threadIdx.x % lanes == 0) results[threadIdx.x / lanes] = result;
  } else {
    wait_for_grid_before();
  }
  __syncthreads();
}

__device__ __forceinline__ int load_past_l1(int const* address) {
  int x;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(x) : "l"(address) : "memory");
  return x;
}

}  // namespace dsa
