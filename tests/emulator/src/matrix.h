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

// --- the same in two steps, for several A (matrix_sum.cpp)

// How tensor cores sum the products of one element of D, and its old value: exactly, but that every term is first cut,
// towards zero, to so many fraction bits of the largest term's exponent, and the sum to so many of its own.
struct Summation {
  int depth;            // products
  int fraction;         // bits kept of a term
  int result_fraction;  // bits kept of the sum
  int least_exponent;   // of an element: smaller numbers are subnormal
};
constexpr Summation kBf16Sums{16, 25, 23, -126}, kHopperFp8Sums{32, 13, 13, -6};

// A matrix B [n, depth], taken apart: [depth][n]. Columns beyond n, up to a multiple of kSumLanes, are zero.
constexpr int kMaxDepth = 32, kMaxColumns = 256, kSumLanes = 16;
struct RightTerms {
  alignas(64) float value[kMaxDepth][kMaxColumns];
  alignas(64) i32 exponent[kMaxDepth][kMaxColumns];  // as the sum sees it, a very low one of zero
  bool special[kMaxColumns];                         // a column with NaN or infinity
  u16 elements[kMaxColumns * kMaxDepth];

  void take_apart(Summation const& sums, int n);  // the elements [n, depth], which stand there already
};
void multiply(Summation const& sums, u16 const* a, RightTerms const& b, float* d, int m, int n, bool accumulate);

}  // namespace emu
