// Programmatic dependent launch: the next kernel of the stream starts while this one still runs.
#pragma once

namespace dsa {

// The next kernel's CTAs may take the places that this grid leaves.
__device__ __forceinline__ void launch_dependent_grids() { asm volatile("griddepcontrol.launch_dependents;"); }

// Until the kernel before has ended and what it wrote can be read. At once, if this one was launched the usual way.
__device__ __forceinline__ void wait_for_grid_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

}  // namespace dsa
