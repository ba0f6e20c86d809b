// Programmatic dependent launch: the next kernel of the stream starts while this one still runs.
#pragma once

namespace dsa {

// The next kernel's CTAs may take the places that this grid leaves.
__device__ __forceinline__ void launch_dependent_grids() { asm volatile("griddepcontrol.launch_dependents;"); }

// Until the kernel before has ended and what it wrote can be read. At once, if this one was launched the usual way.
__device__ __forceinline__ void wait_for_grid_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// What look_up() gives when the kernel before has ended. It is called before that, too, so that what it needs is in the
// caches then: its code, constants, pages of memory. So it must read with load_past_l1 alone: L1 would keep old values.
template <class LookUp>
__device__ __forceinline__ auto look_up_after_grid_before(LookUp const& look_up) {
  decltype(look_up()) result;
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {
    if (i == 1) wait_for_grid_before();
    result = look_up();
  }
  return result;
}

__device__ __forceinline__ int load_past_l1(int const* address) {
  int x;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(x) : "l"(address) : "memory");
  return x;
}

}  // namespace dsa
