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
// The CTA, or for a pair's instruction the n-th of the pair.
inline Cta& pair_member(Cta& cta, int pair, int n) { return pair == 2 ? cta.cluster->ctas[(cta.rank & ~1u) + n] : cta; }

}  // namespace emu
