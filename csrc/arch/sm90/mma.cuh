// Warpgroup matrix products over CuTe tensors. Nothing here waits: the caller commits, waits and fences.
#pragma once

#include <cute/tensor.hpp>

namespace dsa::sm90 {

// The same pointer, but the compiler does not know that: descriptors made from it are computed where they are used.
// Known ones are hoisted out of the loops, more of them than there are registers.
template <class T>
__device__ __forceinline__ T* opaque(T* pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}

// acc (+)= A * B, both operands in shared memory, as what partition_fragment_A and _B make of them: descriptors.
template <class Mma, class FragA, class FragB, class Acc>
__device__ __forceinline__ void mma_ss(Mma mma, FragA const& fragA, FragB const& fragB, Acc& acc, bool zero) {
  mma.accumulate_ = zero ? cute::GMMA::ScaleOut::Zero : cute::GMMA::ScaleOut::One;
  CUTE_UNROLL
  for (int k = 0; k < cute::size<2>(fragA); ++k) {
    cute::gemm(mma, fragA(cute::_, cute::_, k), fragB(cute::_, cute::_, k), acc);
    mma.accumulate_ = cute::GMMA::ScaleOut::One;
  }
}

// One of these operands, so many bytes behind another: where tiles lie one behind the other, that is one addition, and
// to make a descriptor of a pointer takes six instructions.
template <class Frag>
__device__ __forceinline__ auto behind(Frag const& frag, int bytes) {
  return cute::make_tensor(frag.data() + bytes / 16, frag.layout());
}

// The same product, of the tensors themselves: sA [M, K], sB [N, K].
template <class Mma, class TensorA, class TensorB, class Acc>
__device__ __forceinline__ void mma_ss(Mma mma, TensorA const& sA, TensorB const& sB, Acc& acc, int thread, bool zero) {
  auto const slice = mma.get_slice(thread);
  mma_ss(mma, slice.partition_fragment_A(sA), slice.partition_fragment_B(sB), acc, zero);
}

// acc += A * B with A in registers (an accumulator's layout, converted), B in shared memory [N, K].
template <class Mma, class FragA, class TensorB, class Acc>
__device__ __forceinline__ void mma_rs(Mma mma, FragA const& fragA, TensorB const& sB, Acc& acc, int thread) {
  auto const fragB = mma.get_slice(thread).partition_fragment_B(sB);
  mma.accumulate_ = cute::GMMA::ScaleOut::One;
  CUTE_UNROLL
  for (int k = 0; k < cute::size<2>(fragA); ++k)
    cute::gemm(mma, fragA(cute::_, cute::_, k), fragB(cute::_, cute::_, k), acc);
}

}  // namespace dsa::sm90
