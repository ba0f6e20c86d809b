// Loads by tensor map: boxes, and token rows by their numbers. kCtas: 2 for a CTA of a pair, whose bytes are counted at
// the barrier's place in the pair's first CTA.
#pragma once

#include <cutlass/arch/barrier.h>

#include <cute/arch/copy_sm100_tma.hpp>

namespace dsa::sm100 {

// Four rows of a matrix, one box of its columns, to consecutive rows of shared memory (512-byte aligned, for rows of
// 128 bytes). A row number out of range gives zeros.
template <int kCtas>
__device__ __forceinline__ void gather_rows(CUtensorMap const& map, cutlass::arch::ClusterTransactionBarrier& barrier,
                                            void* smem, int column, int4 rows) {
  uint32_t const to = cute::cast_smem_ptr_to_uint(smem), counted_at = cute::cast_smem_ptr_to_uint(&barrier);
  if constexpr (kCtas == 2)
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile::gather4.mbarrier::complete_tx::bytes.cta_group::2"
        " [%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(to),
        "l"(&map), "r"(column), "r"(rows.x), "r"(rows.y), "r"(rows.z), "r"(rows.w),
        "r"(counted_at & cute::Sm100MmaPeerBitMask)
        : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile::gather4.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(to),
        "l"(&map), "r"(column), "r"(rows.x), "r"(rows.y), "r"(rows.z), "r"(rows.w), "r"(counted_at)
        : "memory");
}

// A box of a tensor of four dimensions, innermost first, that is read once.
template <int kCtas>
__device__ __forceinline__ void load_box(CUtensorMap const& map, cutlass::arch::ClusterTransactionBarrier& barrier,
                                         void* smem, int c0, int c1, int c2, int c3) {
  using Load = std::conditional_t<kCtas == 2, cute::SM100_TMA_2SM_LOAD_4D, cute::SM90_TMA_LOAD_4D>;
  Load::copy(&map, reinterpret_cast<uint64_t*>(&barrier), uint64_t(cute::TMA::CacheHintSm90::EVICT_FIRST), smem, c0, c1,
             c2, c3);
}

}  // namespace dsa::sm100
