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

namespace {

// A number as an integer times a power of two.
struct Scaled {
  i64 mantissa;
  int exponent;  // of the mantissa's unit, plus the number of its fraction bits
};
constexpr int kZeroExponent = -400;  // below every product's

Scaled product(u16 a, u16 b) {  // 14 fraction bits
  int const ea = a >> 7 & 255, eb = b >> 7 & 255;
  i64 const mantissa = i64((a & 127) | (ea ? 128 : 0)) * ((b & 127) | (eb ? 128 : 0));
  if (mantissa == 0) return {0, kZeroExponent};
  return {(a ^ b) & 0x8000 ? -mantissa : mantissa, std::max(ea, 1) + std::max(eb, 1) - 254};
}

Scaled addend(float c) {  // 23 fraction bits
  u32 const bits = std::bit_cast<u32>(c);
  int const exponent = bits >> 23 & 255;
  i64 const mantissa = (bits & 0x7fffff) | (exponent ? 0x800000 : 0);
  if (mantissa == 0) return {0, kZeroExponent};
  return {bits >> 31 ? -mantissa : mantissa, std::max(exponent, 1) - 127};
}

// Towards zero.
i64 shifted_right(i64 x, int by) {
  if (by > 60) return 0;
  i64 const magnitude = (x < 0 ? -x : x) >> by;
  return x < 0 ? -magnitude : magnitude;
}

// sum * 2^(exponent - 25) to float32, towards zero.
float truncated(i64 sum, int exponent) {
  if (sum == 0) return 0.f;
  u32 const sign = sum < 0 ? kSignMask : 0;
  u64 bits = u64(sum < 0 ? -sum : sum);
  int const top = 63 - std::countl_zero(bits), e = exponent - 25 + top;
  bits = top > 23 ? bits >> (top - 23) : bits << (23 - top);
  if (e >= -126) return std::bit_cast<float>(sign | u32(e + 127) << 23 | (u32(bits) & 0x7fffff));
  int const shift = -126 - e;
  return std::bit_cast<float>(sign | (shift > 30 ? 0 : u32(bits >> shift)));
}

// The published model of sm_90's and sm_100's bf16 units: all terms are aligned to the largest, cut to 25 fraction
// bits, summed exactly and cut to float32.
float exact_sum(u16 const* a, u16 const* b, float c) {
  Scaled terms[kStepK + 1];
  int largest = kZeroExponent;
  bool special = (std::bit_cast<u32>(c) & kExponentMask) == kExponentMask;
  for (int k = 0; k < kStepK; ++k) {
    special = special || (a[k] >> 7 & 255) == 255 || (b[k] >> 7 & 255) == 255;
    terms[k] = product(a[k], b[k]);
    largest = std::max(largest, terms[k].exponent);
  }
  if (special) {
    double sum = c;
    for (int k = 0; k < kStepK; ++k) sum += double(from_bf16(a[k])) * from_bf16(b[k]);
    return float(sum);
  }
  Scaled const last = addend(c);
  largest = std::max(largest, last.exponent);
  if (largest == kZeroExponent) return 0.f;
  i64 sum = shifted_right(last.mantissa << 2, largest - last.exponent);
  for (int k = 0; k < kStepK; ++k) sum += shifted_right(terms[k].mantissa << 11, largest - terms[k].exponent);
  return truncated(sum, largest);
}

void multiply_fast(u16 const* a, u16 const* b, float* d, int m, int n, bool accumulate) {
  constexpr int kMaxN = 256;
  thread_local float columns[kStepK][kMaxN];
  for (int j = 0; j < n; ++j)
    for (int k = 0; k < kStepK; ++k) columns[k][j] = from_bf16(b[j * kStepK + k]);
  for (int i = 0; i < m; ++i) {
    float* __restrict__ const row = d + i * n;
    if (!accumulate) std::fill_n(row, n, 0.f);
    float x[kStepK];
    for (int k = 0; k < kStepK; ++k) x[k] = from_bf16(a[i * kStepK + k]);
    for (int k = 0; k < kStepK; ++k)
      for (int j = 0; j < n; ++j) row[j] += x[k] * columns[k][j];
  }
}

}  // namespace

void multiply(u16 const* a, u16 const* b, float* d, int m, int n, bool accumulate) {
  if (!settings.exact_mma) return multiply_fast(a, b, d, m, n, accumulate);
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) {
      float& sum = d[i * n + j];
      sum = exact_sum(a + i * kStepK, b + j * kStepK, accumulate ? sum : 0.f);
    }
}

}  // namespace emu
