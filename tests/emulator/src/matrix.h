// What wgmma and tcgen05 share: operands in shared memory, and the product itself.
#pragma once

#include <vector>

#include "machine.h"
#include "tensor_map.h"

namespace emu {

constexpr int kStepK = 16;  // elements of a dot product that one step sums

// A shared-memory matrix descriptor, taken apart. Byte offsets.
struct MatrixDescriptor {
  u32 start, leading, stride;
  Swizzle swizzle;

  static MatrixDescriptor of_wgmma(u64 bits);
  static MatrixDescriptor of_tcgen05(u64 bits);
  u32 row_bytes() const { return 16u << int(swizzle); }
};

enum class Element : u8 { kBf16, kE4m3 };  // the latter becomes bf16, which is exact

struct Part {
  int first_row, rows;        // multiples of 8
  int first_column, columns;  // along the product's sum: 8 or 16
};
// A part of a matrix as bf16, row by row. `across`: consecutive rows, not columns, are neighbours in memory (bf16
// only).
void fetch(Cta& cta, MatrixDescriptor const& d, Part part, bool across, Element element, u16* to);

// D [m, n] float32 (+)= A [m, 16] * B [n, 16]
void multiply(u16 const* a, u16 const* b, float* d, int m, int n, bool accumulate);

}  // namespace emu
