// The arithmetic of matrix products, as the tensor cores do it.
#include <algorithm>
#include <cmath>

#include "formats.h"
#include "matrix.h"

namespace emu {
namespace {

constexpr i32 kZeroExponent = -1000;  // of a product that is zero: below every other's
constexpr i32 kLeastLargest = -133;   // the largest term's exponent is at least this
constexpr i32 kLeastNormal = -126;    // of float32

// A number as mantissa * 2^exponent, with the mantissa in [1, 2), or in (0, 1) for subnormal ones.
struct Parts {
  float mantissa;
  i32 exponent;
};

Parts parts_of(float x, i32 least) {
  u32 const bits = std::bit_cast<u32>(x), sign = bits & kSignMask;
  if ((bits & ~kSignMask) == 0) return {0.f, kZeroExponent};
  i32 const field = i32(bits >> 23 & 255), exponent = field - 127;
  if (field == 0) {  // of float32 and bf16
    float const mantissa = float(bits & 0x7fffff) * 0x1p-23f;
    return {sign ? -mantissa : mantissa, kLeastNormal};
  }
  float const mantissa = std::bit_cast<float>(sign | 127u << 23 | (bits & 0x7fffff));
  if (exponent >= least) return {mantissa, exponent};
  return {std::ldexp(mantissa, exponent - least), least};
}

bool is_special(u16 x) { return (x & 0x7f80) == 0x7f80; }

// One element of D, in whatever range.
float sum_of(Summation const& sums, u16 const* a, u16 const* b, float c) {
  Parts terms[kMaxDepth + 1];
  double plain = c;
  bool special = (std::bit_cast<u32>(c) & kExponentMask) == kExponentMask;
  i32 largest = kLeastLargest;
  for (int k = 0; k < sums.depth; ++k) {
    special = special || is_special(a[k]) || is_special(b[k]);
    plain += double(from_bf16(a[k])) * from_bf16(b[k]);
    Parts const x = parts_of(from_bf16(a[k]), sums.least_exponent), y = parts_of(from_bf16(b[k]), sums.least_exponent);
    terms[k] = {x.mantissa * y.mantissa, x.exponent + y.exponent};
    largest = std::max(largest, terms[k].exponent);
  }
  if (special) return plain == plain ? float(plain) : std::bit_cast<float>(kNan);
  terms[sums.depth] = parts_of(c, kLeastNormal);
  largest = std::max(largest, terms[sums.depth].exponent);
  double sum = 0;  // of whole numbers
  for (int k = 0; k <= sums.depth; ++k)
    sum += std::trunc(std::ldexp(double(terms[k].mantissa), terms[k].exponent - largest + sums.fraction));
  if (sum == 0) return 0.f;
  // Cut the sum's last bits, and those below float32's.
  int const unit = std::max(std::ilogb(sum) + largest - sums.fraction, kLeastNormal) - sums.result_fraction;
  return float(std::ldexp(std::trunc(std::ldexp(sum, largest - sums.fraction - unit)), unit));
}

// --- the same for kSumLanes columns at once

using Floats = float __attribute__((vector_size(4 * kSumLanes)));
using Ints = i32 __attribute__((vector_size(4 * kSumLanes)));
using Doubles = double __attribute__((vector_size(8 * kSumLanes)));
using Longs = i64 __attribute__((vector_size(8 * kSumLanes)));

Ints larger(Ints a, Ints b) { return a > b ? a : b; }
// 2^exponent, and 0 where it is too small for float32.
Floats power_of_2(Ints exponent) { return std::bit_cast<Floats>(larger(exponent + 127, Ints{}) << 23); }

// What columns j.. of a row become. Lanes of `again` are to be summed by sum_of.
template <Summation kSums>
Floats sums_of(Parts const* a, RightTerms const& b, int j, Floats c, Ints& again) {
  auto const column = [&](auto const& rows, int k) { return *reinterpret_cast<decltype(+Ints{}) const*>(&rows[k][j]); };
  Ints const c_bits = std::bit_cast<Ints>(c), c_field = c_bits >> 23 & 255;
  Ints const c_exponent = c_field - 127;
  Ints const c_zero = (c_bits & i32(~kSignMask)) == 0;
  Ints largest = larger(c_zero ? Ints{} + kLeastLargest : c_exponent, Ints{} + kLeastLargest);
  for (int k = 0; k < kSums.depth; ++k) largest = larger(largest, a[k].exponent + column(b.exponent, k));
  Ints const shift = kSums.fraction - largest;
  Ints sum{};
  for (int k = 0; k < kSums.depth; ++k) {
    Floats const mantissa = a[k].mantissa * std::bit_cast<Floats>(column(b.mantissa, k));
    sum += __builtin_convertvector(mantissa * power_of_2(a[k].exponent + column(b.exponent, k) + shift), Ints);
  }
  Ints const c_mantissa = (c_bits & i32(kSignMask | 0x7fffff)) | (c_zero ? Ints{} : Ints{} + (127 << 23));
  Ints const last = __builtin_convertvector(std::bit_cast<Floats>(c_mantissa) * power_of_2(c_exponent + shift), Ints);
  Doubles const exact = __builtin_convertvector(sum, Doubles) + __builtin_convertvector(last, Doubles);
  constexpr i64 kCut = ~((i64(1) << (52 - kSums.result_fraction)) - 1);
  Longs const unit = __builtin_convertvector(1023 - shift, Longs) << 52;
  Doubles const cut = std::bit_cast<Doubles>(std::bit_cast<Longs>(exact) & kCut) * std::bit_cast<Doubles>(unit);
  // Sums that may be subnormal; infinity and NaN.
  Ints const small = largest < kLeastNormal + kSums.fraction;
  again |= (small & (largest != kLeastLargest)) | (c_field == 255);
  return __builtin_convertvector(cut, Floats);
}

template <Summation kSums>
void multiply_rows(u16 const* a, RightTerms const& b, float* d, int m, int n, bool accumulate) {
  alignas(64) float old[kMaxColumns];
  bool const special_column = std::find(b.special, b.special + n, true) != b.special + n;
  for (int i = 0; i < m; ++i, a += kSums.depth, d += n) {
    if (accumulate)
      std::memcpy(old, d, sizeof(float) * n);
    else
      std::fill_n(old, n, 0.f);
    std::fill(old + n, old + (n + kSumLanes - 1) / kSumLanes * kSumLanes, 0.f);
    Parts parts[kSums.depth];
    bool special = special_column;
    for (int k = 0; k < kSums.depth; ++k) {
      parts[k] = parts_of(from_bf16(a[k]), kSums.least_exponent);
      special = special || is_special(a[k]);
    }
    Ints again{};
    for (int j = 0; j < n; j += kSumLanes) {
      Floats const sums = sums_of<kSums>(parts, b, j, load<Floats>(old + j), again);
      std::memcpy(d + j, &sums, sizeof(float) * std::min(n - j, kSumLanes));
    }
    for (int l = 0; l < kSumLanes; ++l) special = special || again[l] != 0;
    if (!special) continue;
    for (int j = 0; j < n; ++j) d[j] = sum_of(kSums, a, b.elements + j * kSums.depth, old[j]);
  }
}

}  // namespace

void RightTerms::take_apart(Summation const& sums, int n) {
  int const padded = (n + kSumLanes - 1) / kSumLanes * kSumLanes;
  for (int j = 0; j < padded; ++j) {
    special[j] = false;
    for (int k = 0; k < sums.depth; ++k) {
      u16 const element = j < n ? elements[j * sums.depth + k] : u16(0);
      Parts const parts = parts_of(from_bf16(element), sums.least_exponent);
      mantissa[k][j] = parts.mantissa;
      exponent[k][j] = parts.exponent;
      special[j] = special[j] || is_special(element);
    }
  }
}

void multiply(Summation const& sums, u16 const* a, RightTerms const& b, float* d, int m, int n, bool accumulate) {
  return sums.depth == kBf16Sums.depth ? multiply_rows<kBf16Sums>(a, b, d, m, n, accumulate)
                                       : multiply_rows<kHopperFp8Sums>(a, b, d, m, n, accumulate);
}

void multiply(u16 const* a, u16 const* b, float* d, int m, int n, bool accumulate) {
  static RightTerms right;
  std::copy_n(b, n * kStepK, right.elements);
  right.take_apart(kBf16Sums, n);
  multiply(kBf16Sums, a, right, d, m, n, accumulate);
}

}  // namespace emu
