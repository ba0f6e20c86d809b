// The descriptors of a product's operands, kept in registers: one pair for each of its instructions.
//
// Where they are computed as they are needed, the compiler does so in one register after the other, and an instruction
// is issued when the one before it has read its own; those of several warpgroups then alternate in the tensor cores.
// With registers for each, a product goes through in one piece: 1 % of a paged call with two tokens. (A ragged call
// takes up to 5 % longer then, so it has none of this.)
#pragma once

#include "config.h"

namespace dsa::sm90::indexer_logits {

template <class Config>
struct Operands {
  static constexpr int kInstructions = Config::kDim / 32;
  static constexpr int kHalfStep = kHalf * Config::kDim / 16;  // descriptors count in 16 bytes

  uint64_t keys[kInstructions], q[kInstructions];

  // Of half a tile, counted over the stages, and a slab.
  __device__ __forceinline__ Operands(e4m3* all_keys, e4m3* all_q, int half, int slab, int thread) {
    auto const slice = typename Config::Mma{}.get_slice(thread);
    auto const of_keys =
        slice.partition_fragment_A(make_tensor(make_smem_ptr(all_keys), typename Config::KeyLayout{}))(_, _, _, half);
    auto const of_q =
        slice.partition_fragment_B(make_tensor(make_smem_ptr(all_q), typename Config::QLayout{}))(_, _, _, slab);
    CUTE_UNROLL
    for (int k = 0; k < kInstructions; ++k) {
      keys[k] = uint64_t(*of_keys(_, _, k).data());
      q[k] = uint64_t(*of_q(_, _, k).data());
      asm("" : "+l"(keys[k]), "+l"(q[k]));  // so that one is not computed from another
    }
  }

  // acc = keys * q^T
  template <class Frag>
  __device__ __forceinline__ void multiply(Frag& acc) const {
    multiply(acc, make_int_sequence<Config::kRows / 2>{});
  }

  __device__ __forceinline__ void move_keys(int halves) {
    CUTE_UNROLL
    for (int k = 0; k < kInstructions; ++k)
      asm("{ .reg .b32 low, high; mov.b64 {low, high}, %0; add.u32 low, low, %1; mov.b64 %0, {low, high}; }"
          : "+l"(keys[k])
          : "r"(halves * kHalfStep));
  }

 private:
  template <class Frag, int... kElement>
  __device__ __forceinline__ void multiply(Frag& acc, int_sequence<kElement...>) const {
    CUTE_UNROLL
    for (int k = 0; k < kInstructions; ++k)
      Product<Config::kRows>::Op::fma(keys[k], q[k], acc(kElement)...,
                                      k == 0 ? GMMA::ScaleOut::Zero : GMMA::ScaleOut::One);
  }
};

}  // namespace dsa::sm90::indexer_logits
