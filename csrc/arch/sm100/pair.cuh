// What a pair of CTAs (a cluster of two, on two neighbouring SMs) does together: matrix products, and loads that end at
// barriers of the first CTA, the leader, whose thread issues the products. umma.cuh has the rest.
//
// A pair's product of 128 rows: each CTA holds 64 rows of A and of D, and half of B's rows. In tensor memory,
//   D [64, N] fp32    lanes 0-63 have columns [0, N / 2), lanes 64-127 columns [N / 2, N) of the same rows
//   A [64, 16] bf16   takes 8 columns; the rows stand twice, in lanes 0-63 and 64-127
#pragma once

#include <cutlass/arch/barrier.h>

#include <cute/arch/copy_sm100_tma.hpp>

#include "umma.cuh"

namespace dsa::sm100 {

constexpr uint32_t kLeader = 0;
constexpr uint16_t kBothCtas = 0b11;

// One arrival at the leader's barrier at this place. Shared memory that the thread wrote before counts as written.
__device__ __forceinline__ void arrive_at_leader(cutlass::arch::ClusterTransactionBarrier& barrier) {
  cutlass::arch::ClusterBarrier::arrive(reinterpret_cast<uint64_t const*>(&barrier), kLeader, 1);
}

// Four rows of a matrix, one box of its columns, to consecutive rows of shared memory (512-byte aligned, for rows of
// 128 bytes). A row number out of range gives zeros. The bytes are counted at the leader's barrier.
__device__ __forceinline__ void gather_rows(CUtensorMap const& map, cutlass::arch::ClusterTransactionBarrier& barrier,
                                            void* smem, int column, int4 rows) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile::gather4.mbarrier::complete_tx::bytes.cta_group::2"
      " [%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(cute::cast_smem_ptr_to_uint(smem)),
      "l"(&map), "r"(column), "r"(rows.x), "r"(rows.y), "r"(rows.z), "r"(rows.w),
      "r"(cute::cast_smem_ptr_to_uint(&barrier) & cute::Sm100MmaPeerBitMask)
      : "memory");
}

// D (+)= A * B^T by the pair, bf16, with A in tensor memory.
__device__ __forceinline__ void umma_pair_from_tmem(uint32_t d, uint32_t a, uint64_t b, uint32_t instruction,
                                                    bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\n"
      "tcgen05.mma.cta_group::2.kind::f16 [%0], [%1], %2, %3, p;\n}" ::"r"(d),
      "r"(a), "l"(b), "r"(instruction), "r"(uint32_t(accumulate))
      : "memory");
}

// 64 rows of 16 bytes from each CTA's shared memory to four columns of its tensor memory, as an A operand (twice).
// Products that the thread issues later find them there.
__device__ __forceinline__ void copy_operand_to_tmem(uint32_t to, uint64_t from) {
  asm volatile("tcgen05.cp.cta_group::2.64x128b.warpx2::02_13 [%0], %1;" ::"r"(to), "l"(from) : "memory");
}

}  // namespace dsa::sm100
