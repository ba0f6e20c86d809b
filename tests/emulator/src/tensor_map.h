// What a CUtensorMap's opaque 128 bytes hold here.
#pragma once

#include "base.h"

namespace emu {

// Address bits 4.. of a row of 16 << mode bytes are exchanged with the row's number, 16 bytes at a time.
enum class Swizzle : u8 { kNone = 0, k32 = 1, k64 = 2, k128 = 3 };

inline u32 swizzled(u32 address, Swizzle mode) { return address ^ ((address >> 7 & ((1u << int(mode)) - 1)) << 4); }

struct TensorMap {
  static constexpr u64 kMagic = 0x50414d4154554d45;
  u64 magic;
  u64 reserved;  // CUTLASS clears a bit of this word under older drivers
  u64 address;
  u64 stride[4];  // in bytes, of the second dimension and up
  u32 size[5];
  u16 box[5];
  u8 rank, element_bytes;
  Swizzle swizzle;
};
static_assert(sizeof(TensorMap) <= 128);

}  // namespace emu
