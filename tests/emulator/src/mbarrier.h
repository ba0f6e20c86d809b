// mbarriers: 8 bytes of shared memory. The emulator's word is its own, as the device's is:
//   bit 63 phase | 62:43 arrivals a phase | 42:23 arrivals pending | 22:0 transaction bytes outstanding + 2^21
#pragma once

#include "memory.h"

namespace emu {

struct MbarrierState {
  static constexpr i64 kBytesBias = 1 << 21;
  u32 phase;
  u32 expected, pending;
  i64 bytes;

  static MbarrierState from_word(u64 word) {
    return {u32(word >> 63), u32(word >> 43 & 0xfffff), u32(word >> 23 & 0xfffff), i64(word & 0x7fffff) - kBytesBias};
  }
  u64 word() const { return u64(phase) << 63 | u64(expected) << 43 | u64(pending) << 23 | u64(bytes + kBytesBias); }
};

MbarrierState mbarrier_state(Cta& cta, u32 address);  // a Fault where none was initialised

// Arrivals and a change of the transaction count, at an mbarrier of this CTA or, by its address, another's.
void mbarrier_update(Cta& cta, u32 address, u32 arrivals, i64 bytes);

}  // namespace emu
