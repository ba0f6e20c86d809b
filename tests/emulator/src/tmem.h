// Tensor memory: 128 lanes of 512 columns of 4 bytes a CTA. An address is lane << 16 | column.
#pragma once

#include "machine.h"

namespace emu {

constexpr u32 kTmemColumns = 512, kTmemLanes = 128, kTmemQuarters = 4;

inline u32 tmem_column(u32 address) { return address & 0xffff; }
inline u32& tmem_cell(Cta& cta, u32 lane, u32 column) {
  if (lane >= kTmemLanes || column >= cta.tmem_allocated)
    fault("tensor memory lane %u, column %u is outside of the %u columns that are allocated", lane, column,
          cta.tmem_allocated);
  return cta.tmem[lane * kTmemColumns + column];
}
// Columns [first, first + count) of a CTA's lanes, or of a quarter of them alone.
struct TmemPart {
  Cta* cta;
  u32 first, count;
  int quarter = -1;
};

// What orders tensor work that comes one after the other: copies to tensor memory come before all products that
// follow, products of one shape on the same sums before each other.
struct TensorPipeline {
  enum Kind : u8 { kNone, kCopy, kProduct } kind = kNone;
  u32 sums = 0, shape = 0;  // of a product: where it leaves its sums; all that its shape depends on

  bool operator==(TensorPipeline const&) const = default;
  bool comes_before(TensorPipeline const& next) const {
    return next.kind == kProduct && (kind == kCopy || *this == next);
  }
};

// The CTA, or for a pair's instruction the n-th of the pair.
inline Cta& pair_member(Cta& cta, int pair, int n) { return pair == 2 ? cta.cluster->ctas[(cta.rank & ~1u) + n] : cta; }

}  // namespace emu
