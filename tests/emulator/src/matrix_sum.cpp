// The arithmetic of matrix products, as the tensor cores do it.
#include <algorithm>
#include <cmath>

#ifdef __SSE__
#include <xmmintrin.h>
#endif

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
Ints smaller(Ints a, Ints b) { return a < b ? a : b; }
// 2^exponent, of a normal number.
Floats power_of_2(Ints exponent) { return std::bit_cast<Floats>((exponent + 127) << 23); }

// The exponent in parts_of() of a finite number that a bf16 is.
i32 exponent_of(u16 x, i32 least) {
  return (x & 0x7fff) == 0 ? kZeroExponent : std::max(i32(x >> 7 & 255) - 127, least);
}

// Results below the normal numbers become zeros, where they would take the CPU a hundred cycles each.
class FlushedToZero {
 public:
#ifdef __SSE__
  FlushedToZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON); }
  ~FlushedToZero() { _mm_setcsr(before_); }

 private:
  u32 before_;
#endif
};

// The largest term's exponents for which float32 has the terms' products, and those times 2^(fraction - largest), or
// loses none of the bits that are kept.
template <Summation kSums>
constexpr i32 kLeastExact = kLeastNormal + kSums.fraction;
constexpr i32 kMostExact = 125;

// What columns j.. of a row become. Lanes of `again` are to be summed by sum_of.
template <Summation kSums>
Floats sums_of(float const* a, i32 const* a_exponent, RightTerms const& b, int j, Floats c, Ints& again) {
  Ints const c_bits = std::bit_cast<Ints>(c), c_field = c_bits >> 23 & 255;
  Ints const c_zero = (c_bits & i32(~kSignMask)) == 0;
  Ints largest = c_zero ? Ints{} + 2 * kZeroExponent : c_field - 127;
  for (int k = 0; k < kSums.depth; ++k) largest = larger(largest, a_exponent[k] + load<Ints>(&b.exponent[k][j]));
  Ints const exact = smaller(larger(largest, Ints{} + kLeastExact<kSums>), Ints{} + kMostExact);
  Ints const shift = kSums.fraction - exact;
  Floats const scale = power_of_2(shift);
  Ints sum{};
  for (int k = 0; k < kSums.depth; ++k)
    sum += __builtin_convertvector(a[k] * load<Floats>(&b.value[k][j]) * scale, Ints);
  Ints const last = __builtin_convertvector(c * scale, Ints);
  Doubles const whole = __builtin_convertvector(sum, Doubles) + __builtin_convertvector(last, Doubles);
  constexpr i64 kCut = ~((i64(1) << (52 - kSums.result_fraction)) - 1);
  Longs const unit = __builtin_convertvector(1023 - shift, Longs) << 52;
  Doubles const cut = std::bit_cast<Doubles>(std::bit_cast<Longs>(whole) & kCut) * std::bit_cast<Doubles>(unit);
  // Infinity, NaN and what is out of range, unless it is zero.
  again |= ((largest != exact) & (largest > kZeroExponent / 2)) | (c_field == 255);
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
    float value[kSums.depth];
    i32 exponent[kSums.depth];
    bool special = special_column;
    for (int k = 0; k < kSums.depth; ++k) {
      value[k] = from_bf16(a[k]);
      exponent[k] = exponent_of(a[k], kSums.least_exponent);
      special = special || is_special(a[k]);
    }
    Ints again{};
    {
      FlushedToZero const flushed;
      for (int j = 0; j < n; j += kSumLanes) {
        Floats const sums = sums_of<kSums>(value, exponent, b, j, load<Floats>(old + j), again);
        std::memcpy(d + j, &sums, sizeof(float) * std::min(n - j, kSumLanes));
      }
    }
    for (int l = 0; l < kSumLanes; ++l) special = special || again[l] != 0;
    if (!special) continue;
    for (int j = 0; j < n; ++j) d[j] = sum_of(kSums, a, b.elements + j * kSums.depth, old[j]);
  }
}

}  // namespace

void RightTerms::take_apart(Summation const& sums, int n) {
  int const padded = (n + kSumLanes - 1) / kSumLanes * kSumLanes;
  std::fill_n(special, padded, false);
  for (int k = 0; k < sums.depth; ++k) {
    u16 column[kMaxColumns] = {};
    for (int j = 0; j < n; ++j) column[j] = elements[j * sums.depth + k];
    for (int j = 0; j < padded; ++j) {
      value[k][j] = from_bf16(column[j]);
      exponent[k][j] = exponent_of(column[j], sums.least_exponent);
      special[j] |= is_special(column[j]);
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
