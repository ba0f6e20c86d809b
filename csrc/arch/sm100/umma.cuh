// Matrix products of the fifth-generation tensor cores (tcgen05.mma, "UMMA"): D (+)= A * B^T, with A [M, K] in shared
// or tensor memory, B [N, K] in shared memory, D [M, N] fp32 in tensor memory.
//
// One thread issues; products and commits of a thread run in that order. Nothing here waits.
#pragma once

#include <cute/atom/mma_traits_sm100.hpp>
#include <cute/tensor.hpp>

namespace dsa::sm100 {

using cute::UMMA::Major;

// What a product is of: K elements are 32 bytes a row.
template <class Element>
constexpr int kUmmaK = 32 / sizeof(Element);

// kMajor K: a row's elements are neighbours in memory; MN: a column's. N a multiple of 16, up to 256.
template <class Element, int kM, Major kMajorA = Major::K, Major kMajorB = Major::K>
__device__ __forceinline__ constexpr uint32_t umma_instruction(int n) {
  cute::UMMA::InstrDescriptor d = cute::UMMA::make_instr_desc<Element, Element, float, kM, 256, kMajorA, kMajorB>();
  d.n_dim_ = n >> 3;
  return d.desc_;
}

// Of an operand in shared memory: a tensor in one of CuTe's UMMA layouts, kUmmaK elements wide.
template <Major kMajor = Major::K, class Tensor>
__device__ __forceinline__ uint64_t umma_operand(Tensor const& tile) {
  return cute::UMMA::make_umma_desc<kMajor>(tile);
}
// The same, so many bytes on. (Swizzling looks at the address's own bits, so a start within an atom is fine.)
__device__ __forceinline__ uint64_t umma_operand_at(uint64_t operand, int bytes) { return operand + (bytes >> 4); }

// kCtas: 2 for a pair, whose first CTA issues; each CTA then has half of D's rows, of A's rows and of B's.
template <class Element, int kCtas = 1>
__device__ __forceinline__ void umma(uint32_t d, uint64_t a, uint64_t b, uint32_t instruction, bool accumulate) {
  constexpr bool kFp8 = sizeof(Element) == 1;
  static_assert(kCtas == 1 || !kFp8);
  if constexpr (kFp8)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\n"
        "tcgen05.mma.cta_group::1.kind::f8f6f4 [%0], %1, %2, %3, p;\n}" ::"r"(d),
        "l"(a), "l"(b), "r"(instruction), "r"(uint32_t(accumulate))
        : "memory");
  else if constexpr (kCtas == 1)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\n"
        "tcgen05.mma.cta_group::1.kind::f16 [%0], %1, %2, %3, p;\n}" ::"r"(d),
        "l"(a), "l"(b), "r"(instruction), "r"(uint32_t(accumulate))
        : "memory");
  else
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\n"
        "tcgen05.mma.cta_group::2.kind::f16 [%0], %1, %2, %3, p;\n}" ::"r"(d),
        "l"(a), "l"(b), "r"(instruction), "r"(uint32_t(accumulate))
        : "memory");
}

// An arrival at the barrier once all that this thread has issued so far is done: its operands may be overwritten, its
// sums may be read (after_tmem_handover).
__device__ __forceinline__ void commit_umma(uint64_t* barrier) {
  asm volatile("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(
                   cute::cast_smem_ptr_to_uint(barrier))
               : "memory");
}
// Of a pair's products: at this place in every CTA of `ctas`, a bit each.
__device__ __forceinline__ void commit_umma_pair(uint64_t* barrier, uint16_t ctas) {
  asm volatile(
      "tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 [%0], %1;" ::"r"(
          cute::cast_smem_ptr_to_uint(barrier)),
      "h"(ctas)
      : "memory");
}

}  // namespace dsa::sm100
