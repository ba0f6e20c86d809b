// Products of 64 rows a CTA, bf16: by one CTA alone, or by a pair (a cluster of two, on two neighbouring SMs), each of
// whose CTAs holds 64 of the rows of A and D, and half of the rows of B. A thread of the pair's first CTA, the leader,
// issues them. umma.cuh has the rest. In tensor memory, in both forms,
//   D [64, N] fp32    lanes 0-63 have columns [0, N / 2), lanes 64-127 columns [N / 2, N) of the same rows
//   A [64, 16] bf16   takes 8 columns; the rows stand twice, in lanes 0-63 and 64-127
#pragma once

#include <cutlass/arch/barrier.h>

#include "umma.cuh"

namespace dsa::sm100 {

constexpr uint32_t kLeader = 0;
constexpr uint16_t kBothCtas = 0b11;

// One arrival at the leader's barrier at this place. Shared memory that the thread wrote before counts as written.
__device__ __forceinline__ void arrive_at_leader(cutlass::arch::ClusterTransactionBarrier& barrier) {
  cutlass::arch::ClusterBarrier::arrive(reinterpret_cast<uint64_t const*>(&barrier), kLeader, 1);
}

// How operands that threads write to shared memory, in a pair also to the other CTA's, come to the products:
// each writer's fence; an arrival of one of the threads that have met since, at the leader's barrier; the leader's
// wait.
template <int kCtas>
__device__ __forceinline__ void fence_operands() {
  if constexpr (kCtas == 2)
    asm volatile("fence.proxy.async.shared::cluster;" ::: "memory");
  else
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
template <int kCtas>
__device__ __forceinline__ void arrive_for_products(cutlass::arch::ClusterTransactionBarrier& barrier) {
  if constexpr (kCtas == 2)
    asm volatile(
        "{\n.reg .b32 leaders;\nmapa.shared::cluster.u32 leaders, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [leaders];\n}" ::"r"(
            cute::cast_smem_ptr_to_uint(&barrier)),
        "r"(kLeader)
        : "memory");
  else
    barrier.arrive();
}
template <int kCtas>
__device__ __forceinline__ void wait_for_operands(cutlass::arch::ClusterTransactionBarrier& barrier, uint32_t phase) {
  if constexpr (kCtas == 2)
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(cute::cast_smem_ptr_to_uint(&barrier)),
        "r"(phase)
        : "memory");
  else
    barrier.wait(phase);
}

// D (+)= A * B^T. kCtas: 2 for a pair. (Of a CTA's own forms, only the weight-stationary one has 64 rows in this
// layout.)
template <int kCtas>
__device__ __forceinline__ void umma_64_rows(uint32_t d, uint64_t a, uint64_t b, uint32_t instruction,
                                             bool accumulate) {
  if constexpr (kCtas == 2)
    umma<cutlass::bfloat16_t, 2>(d, a, b, instruction, accumulate);
  else
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\n"
        "tcgen05.mma.ws.cta_group::1.kind::f16 [%0], %1, %2, %3, p;\n}" ::"r"(d),
        "l"(a), "l"(b), "r"(instruction), "r"(uint32_t(accumulate))
        : "memory");
}

// The same with A in tensor memory.
template <int kCtas>
__device__ __forceinline__ void umma_64_rows_from_tmem(uint32_t d, uint32_t a, uint64_t b, uint32_t instruction,
                                                       bool accumulate) {
  if constexpr (kCtas == 2)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\n"
        "tcgen05.mma.cta_group::2.kind::f16 [%0], [%1], %2, %3, p;\n}" ::"r"(d),
        "r"(a), "l"(b), "r"(instruction), "r"(uint32_t(accumulate))
        : "memory");
  else
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\n"
        "tcgen05.mma.ws.cta_group::1.kind::f16 [%0], [%1], %2, %3, p;\n}" ::"r"(d),
        "r"(a), "l"(b), "r"(instruction), "r"(uint32_t(accumulate))
        : "memory");
}

// 64 rows of 16 bytes from each CTA's shared memory to four columns of its tensor memory, as a part of A (twice).
// Products that the thread issues later find them there.
template <int kCtas>
__device__ __forceinline__ void copy_operand_to_tmem(uint32_t to, uint64_t from) {
  if constexpr (kCtas == 2)
    asm volatile("tcgen05.cp.cta_group::2.64x128b.warpx2::02_13 [%0], %1;" ::"r"(to), "l"(from) : "memory");
  else
    asm volatile("tcgen05.cp.cta_group::1.64x128b.warpx2::02_13 [%0], %1;" ::"r"(to), "l"(from) : "memory");
}

// An arrival at this place in every CTA of the group once all that the thread has issued so far is done.
template <int kCtas>
__device__ __forceinline__ void commit_products(cutlass::arch::ClusterTransactionBarrier& barrier) {
  auto* const place = reinterpret_cast<uint64_t*>(&barrier);
  if constexpr (kCtas == 2)
    commit_umma_pair(place, kBothCtas);
  else
    commit_umma(place);
}

}  // namespace dsa::sm100
