// Tensor memory of the attention kernels on Blackwell, of 64 heads a CTA; arch/sm100/rows64.cuh has the layouts.
#pragma once

#include "arch/sm100/tmem.cuh"
#include "tiles.h"

namespace dsa::sm100 {

constexpr int kTmemQTiles = 6;  // of Q; there is no room for the rest, which stays in shared memory

enum TmemMap : uint32_t {
  kTmemO = 0,      // 256: fp32, half of the value columns in lanes 0-63, the others in lanes 64-127
  kTmemS = 256,    // 2 x 32: fp32, scores of a block: keys [0, 32) in lanes 0-63, the others in lanes 64-127
  kTmemQ = 320,    // 192: bf16 columns [0, 384) of Q, twice
  kTmemEnd = 512,  // all of it: one CTA an SM
};
constexpr uint32_t kTmemSColumns = kBlockK / 2;

static_assert(kTmemO + kHalfV == kTmemS && kTmemS + 2 * kTmemSColumns == kTmemQ);
static_assert(kTmemQ + kTmemQTiles * kTileCols / 2 == kTmemEnd && kTmemEnd <= kTmemColumns);

}  // namespace dsa::sm100
