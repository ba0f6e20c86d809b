#include "matrix.h"

#include <array>
#include <cmath>

#include "formats.h"
#include "memory.h"

namespace emu {
namespace {

MatrixDescriptor common_fields(u64 bits) {
  if (bits >> 49 & 7) fault("matrix descriptor %#lx: a base offset, which is not emulated", bits);
  return {u32(bits & 0x3fff) << 4, u32(bits >> 16 & 0x3fff) << 4, u32(bits >> 32 & 0x3fff) << 4, Swizzle::kNone};
}

// Byte offset of an element before swizzling: in the canonical layouts, cores of 8 rows of 16 bytes (unswizzled) or of
// a swizzle's width, `stride` and `leading` apart.
u32 offset_along(MatrixDescriptor const& d, u32 row, u32 byte) {
  if (d.swizzle == Swizzle::kNone) return row % 8 * 16 + row / 8 * d.stride + byte / 16 * d.leading + byte % 16;
  return row % 8 * d.row_bytes() + row / 8 * d.stride + byte;
}
u32 offset_across(MatrixDescriptor const& d, u32 row, u32 column) {
  u32 const byte = row * 2, width = d.row_bytes();
  if (d.swizzle == Swizzle::kNone) return byte % 16 + row / 8 * d.stride + column % 8 * 16 + column / 8 * d.leading;
  return byte % width + byte / width * d.leading + column % 8 * width + column / 8 * d.stride;
}

// 16 bytes that swizzling leaves together.
u8 const* chunk(Cta& cta, MatrixDescriptor const& d, u32 offset) {
  constexpr u32 kWindow = 0x3ffff;  // descriptors have 18 bits of address
  u32 const address = in_cta(cta.rank, swizzled(d.start + offset, d.swizzle) & kWindow);
  check_async_read(cta, address, 16, "a matrix product");
  return shared_memory(cta, address, 16);
}

u16 bf16_from_e4m3(u8 x) {
  static auto const table = [] {
    std::array<u16, 256> t;
    for (int i = 0; i < 256; ++i) t[i] = to_bf16(from_e4m3(u8(i)));
    return t;
  }();
  return table[x];
}

}  // namespace

MatrixDescriptor MatrixDescriptor::of_wgmma(u64 bits) {
  MatrixDescriptor d = common_fields(bits);
  constexpr Swizzle kModes[] = {Swizzle::kNone, Swizzle::k128, Swizzle::k64, Swizzle::k32};
  d.swizzle = kModes[bits >> 62];
  return d;
}

MatrixDescriptor MatrixDescriptor::of_tcgen05(u64 bits) {
  MatrixDescriptor d = common_fields(bits);
  if ((bits >> 46 & 7) != 1) fault("matrix descriptor %#lx: its version is not that of tcgen05", bits);
  if (bits >> 52 & 1) fault("matrix descriptor %#lx: an absolute leading dimension, which is not emulated", bits);
  switch (bits >> 61) {
    case 0: d.swizzle = Swizzle::kNone; break;
    case 2: d.swizzle = Swizzle::k128; break;
    case 4: d.swizzle = Swizzle::k64; break;
    case 6: d.swizzle = Swizzle::k32; break;
    default: fault("matrix descriptor %#lx: a swizzle that is not emulated", bits);
  }
  return d;
}

void fetch(Cta& cta, MatrixDescriptor const& d, Part part, bool across, Element element, u16* to) {
  auto const [first_row, rows, first_column, columns] = part;
  if (across) {
    if (element != Element::kBf16) fault("only bf16 matrices may be read across");
    for (int k = 0; k < columns; ++k)
      for (int row = 0; row < rows; row += 8) {
        u8 const* const from = chunk(cta, d, offset_across(d, u32(first_row + row), u32(first_column + k)));
        for (int r = 0; r < 8; ++r) to[(row + r) * columns + k] = load<u16>(from + 2 * r);
      }
    return;
  }
  int const bytes = element == Element::kBf16 ? 2 : 1, per_chunk = 16 / bytes;
  for (int row = 0; row < rows; ++row)
    for (int k = 0; k < columns; k += per_chunk) {
      u8 const* const from = chunk(cta, d, offset_along(d, u32(first_row + row), u32((first_column + k) * bytes)));
      u16* const row_to = to + row * columns + k;
      if (element == Element::kBf16)
        std::memcpy(row_to, from, 16);
      else
        for (int e = 0; e < per_chunk; ++e) row_to[e] = bf16_from_e4m3(from[e]);
    }
}

}  // namespace emu
