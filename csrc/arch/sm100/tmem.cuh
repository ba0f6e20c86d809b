// Tensor memory: 128 lanes of 512 columns of 4 bytes, where matrix products leave their sums. An address is
// lane << 16 | column. Warp w of a CTA reaches lanes 32 (w % 4) and up; lane l of the warp is lane 32 (w % 4) + l.
//
// What is not ordered by itself:
//   loads                      are under way until wait_for_tmem_loads, stores until wait_for_tmem_stores
//   another warp, or products  on both sides of the barrier that hands columns over: before_tmem_handover, and behind
//                              it after_tmem_handover. A commit (umma.cuh) has the former in it; to allocate and to
//                              free are synchronous: who has allocated needs not the former, who frees not the latter.
#pragma once

#include <cute/arch/copy_sm100.hpp>
#include <cute/arch/tmem_allocator_sm100.hpp>
#include <utility>

namespace dsa::sm100 {

constexpr int kTmemLanes = 128, kTmemColumns = 512;

// By one whole warp. `columns`: a power of two from 32 on. The address goes to shared memory; the same warp frees it,
// before the CTA ends. kCtas: 2 for a pair, whose CTAs both call it.
template <int kCtas = 1>
__device__ __forceinline__ void allocate_tmem(uint32_t* smem_address, int columns) {
  using Allocator = std::conditional_t<kCtas == 1, cute::TMEM::Allocator1Sm, cute::TMEM::Allocator2Sm>;
  Allocator().allocate(columns, smem_address);
  Allocator().release_allocation_lock();
}
template <int kCtas = 1>
__device__ __forceinline__ void free_tmem(uint32_t address, int columns) {
  using Allocator = std::conditional_t<kCtas == 1, cute::TMEM::Allocator1Sm, cute::TMEM::Allocator2Sm>;
  Allocator().free(address, columns);
}

__device__ __forceinline__ void before_tmem_handover() {
  asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
}
__device__ __forceinline__ void after_tmem_handover() {
  asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
}

template <int kColumns>
struct TmemMove;
template <>
struct TmemMove<8> {
  using Load = cute::SM100_TMEM_LOAD_32dp32b8x;
  using Store = cute::SM100_TMEM_STORE_32dp32b8x;
};
template <>
struct TmemMove<16> {
  using Load = cute::SM100_TMEM_LOAD_32dp32b16x;
  using Store = cute::SM100_TMEM_STORE_32dp32b16x;
};
template <>
struct TmemMove<32> {
  using Load = cute::SM100_TMEM_LOAD_32dp32b32x;
  using Store = cute::SM100_TMEM_STORE_32dp32b32x;
};
template <>
struct TmemMove<64> {
  using Load = cute::SM100_TMEM_LOAD_32dp32b64x;
  using Store = cute::SM100_TMEM_STORE_32dp32b64x;
};

// Of a warp's first lane, whatever its warpgroup.
__device__ __forceinline__ uint32_t tmem_lane_of_warp() { return threadIdx.x % 128 / 32 << 21; }

// By a whole warp: `kColumns` columns from `address` on, whose lane is tmem_lane_of_warp; of each thread's own lane.
template <int kColumns>
__device__ __forceinline__ void load_tmem(uint32_t address, uint32_t (&to)[kColumns]) {
  [&]<size_t... i>(std::index_sequence<i...>) {
    TmemMove<kColumns>::Load::copy(address, to[i]...);
  }(std::make_index_sequence<kColumns>{});
}
template <int kColumns>
__device__ __forceinline__ void store_tmem(uint32_t address, uint32_t const (&from)[kColumns]) {
  [&]<size_t... i>(std::index_sequence<i...>) {
    TmemMove<kColumns>::Store::copy(from[i]..., address);
  }(std::make_index_sequence<kColumns>{});
}

// Of all of the warp's loads so far. Names the registers that are read next, lest the compiler reads them before.
template <int kColumns>
__device__ __forceinline__ void wait_for_tmem_loads(uint32_t (&loaded)[kColumns]) {
  asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory");
  CUTE_UNROLL
  for (uint32_t& x : loaded) asm volatile("" : "+r"(x));
}
__device__ __forceinline__ void wait_for_tmem_stores() { asm volatile("tcgen05.wait::st.sync.aligned;" ::: "memory"); }

}  // namespace dsa::sm100
