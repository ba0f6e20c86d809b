// Products of many small tiles that lie one behind the other: their descriptors are one addition each from the first
// tile's. (Made of pointers, as mma_ss makes them, they take six, and with few columns a product is short: a block's
// were half of a consumer's instructions.)
#pragma once

#include <cute/tensor.hpp>

namespace dsa::sm90::few_heads {

// acc (+)= A * B, both operands in shared memory, given as what partition_fragment_A and _B make of their tensors.
template <class Mma, class FragA, class FragB, class Acc>
__device__ __forceinline__ void multiply(Mma mma, FragA const& fragA, FragB const& fragB, Acc& acc, bool zero) {
  mma.accumulate_ = zero ? cute::GMMA::ScaleOut::Zero : cute::GMMA::ScaleOut::One;
  CUTE_UNROLL
  for (int k = 0; k < cute::size<2>(fragA); ++k) {
    cute::gemm(mma, fragA(cute::_, cute::_, k), fragB(cute::_, cute::_, k), acc);
    mma.accumulate_ = cute::GMMA::ScaleOut::One;
  }
}

// An operand that lies so many bytes behind another.
template <class Frag>
__device__ __forceinline__ auto behind(Frag const& frag, int bytes) {
  return cute::make_tensor(frag.data() + bytes / 16, frag.layout());
}

}  // namespace dsa::sm90::few_heads
