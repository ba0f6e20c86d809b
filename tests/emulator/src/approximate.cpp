// ex2.approx and lg2.approx: 64 parabolas each, in whole numbers. The forms and the numbers were found from what an
// H200 gives for all 2^23 fractions (ex2) and for 2^19 of them (lg2): golden/tables.py.
#include "approximate.h"

#include <cmath>

#include "formats.h"

namespace emu {
namespace {

constexpr int kStepBits = 17, kFractionBits = 23;

struct Parabola {
  i64 c0, c1, c2;
};

// t^2 / 2^19, from which the products of bits that count less than 2^19 are left out, one by one.
i64 cut_square(u64 t) {
  u64 sum = 0;
  for (int i = 0; i < kStepBits; ++i) {
    if (!(t >> i & 1)) continue;
    int const least = std::max(i + 1, 18 - i);  // the bits j > i that make 2^19 and more with this one
    sum += (t >> least << least) << (i + 1);
    if (2 * i >= 19) sum += u64(1) << 2 * i;
  }
  return i64(sum >> 19);
}

i64 evaluate(Parabola const* table, u32 fraction, int shift, i64 bias) {
  Parabola const& p = table[fraction >> kStepBits];
  i64 const t = fraction & ((1 << kStepBits) - 1);
  return (p.c0 << shift) + bias + p.c1 * t + p.c2 * cut_square(u64(t));
}

constexpr Parabola kEx2[64] = {
    {33554435, 22713, 494}, {33919818, 22960, 501}, {34289182, 23210, 506}, {34662565, 23463, 511},
    {35040018, 23718, 518}, {35421577, 23977, 521}, {35807292, 24238, 527}, {36197209, 24502, 532},
    {36591372, 24768, 541}, {36989825, 25038, 546}, {37392616, 25311, 551}, {37799797, 25586, 559},
    {38211409, 25865, 564}, {38627504, 26147, 568}, {39048131, 26431, 577}, {39473337, 26719, 583},
    {39903173, 27010, 589}, {40337690, 27304, 596}, {40776937, 27602, 600}, {41220970, 27902, 609},
    {41669836, 28206, 615}, {42123592, 28513, 622}, {42582286, 28824, 627}, {43045977, 29138, 633},
    {43514717, 29455, 641}, {43988561, 29776, 647}, {44467565, 30100, 655}, {44951786, 30428, 661},
    {45441278, 30759, 670}, {45936101, 31094, 677}, {46436314, 31432, 686}, {46941971, 31775, 691},
    {47453135, 32121, 699}, {47969867, 32471, 705}, {48492225, 32824, 715}, {49020269, 33182, 721},
    {49554065, 33543, 730}, {50093674, 33908, 739}, {50639159, 34277, 748}, {51190582, 34651, 753},
    {51748011, 35028, 763}, {52311510, 35409, 773}, {52881146, 35795, 779}, {53456983, 36185, 787},
    {54039091, 36579, 796}, {54627538, 36977, 806}, {55222393, 37380, 813}, {55823725, 37787, 822},
    {56431607, 38198, 833}, {57046106, 38614, 842}, {57667297, 39035, 849}, {58295254, 39460, 858},
    {58930048, 39889, 870}, {59571754, 40324, 877}, {60220447, 40763, 887}, {60876205, 41207, 896},
    {61539104, 41655, 909}, {62209220, 42109, 917}, {62886634, 42568, 925}, {63571424, 43031, 938},
    {64263672, 43500, 946}, {64963458, 43973, 959}, {65670863, 44452, 969}, {66385972, 44936, 980},
};

constexpr Parabola kLg2[64] = {
    {7, 47272, -1454},        {1501082, 46545, -1410},  {2979248, 45840, -1370},  {4435178, 45156, -1330},
    {5869541, 44492, -1292},  {7282962, 43847, -1254},  {8676044, 43221, -1220},  {10049363, 42612, -1184},
    {11403483, 42020, -1152}, {12738917, 41444, -1118}, {14056184, 40884, -1088}, {15355769, 40339, -1060},
    {16638140, 39809, -1036}, {17903743, 39292, -1008}, {19153023, 38788, -982},  {20386388, 38297, -958},
    {21604233, 37818, -932},  {22806955, 37351, -910},  {23994917, 36896, -890},  {25168476, 36451, -866},
    {26327983, 36018, -850},  {27473763, 35594, -828},  {28606145, 35180, -808},  {29725438, 34776, -792},
    {30831938, 34380, -770},  {31925933, 33994, -754},  {33007706, 33616, -736},  {34077525, 33247, -722},
    {35135650, 32886, -708},  {36182341, 32532, -692},  {37217834, 32186, -678},  {38242366, 31847, -662},
    {39256173, 31516, -652},  {40259472, 31191, -638},  {41252485, 30872, -622},  {42235415, 30561, -614},
    {43208464, 30255, -600},  {44171830, 29955, -586},  {45125709, 29662, -578},  {46070275, 29374, -566},
    {47005716, 29091, -552},  {47932209, 28814, -542},  {48849920, 28542, -532},  {49759008, 28276, -524},
    {50659645, 28014, -514},  {51551985, 27757, -506},  {52436169, 27505, -498},  {53312352, 27257, -488},
    {54180676, 27013, -476},  {55041283, 26774, -468},  {55894308, 26540, -464},  {56739878, 26309, -454},
    {57578134, 26082, -446},  {58409191, 25859, -438},  {59233179, 25640, -432},  {60050209, 25424, -422},
    {60860399, 25213, -418},  {61663869, 25004, -408},  {62460730, 24799, -402},  {63251080, 24598, -398},
    {64035037, 24399, -390},  {64812691, 24204, -384},  {65584149, 24012, -378},  {66349508, 23823, -372},
};

// Of operands and results that are not subnormal: others are zeros to it.
float ex2_unit(float x) {
  if (x >= 128) return INFINITY;
  if (x < -126) return 0;
  u32 const magnitude = u32(std::fabs(x) * 0x1p23f), part = magnitude & ((1 << kFractionBits) - 1);
  // Of negative operands the complement is taken for the negative, except where that is whole.
  i32 const fixed = i32(x >= 0 ? magnitude : part == 0 ? -magnitude : ~magnitude);
  i64 const mantissa = evaluate(kEx2, fixed & ((1 << kFractionBits) - 1), 13, 6114) >> 15;
  return std::ldexp(float(mantissa), (fixed >> kFractionBits) - kFractionBits);
}

float lg2_unit(float x) {
  if (x == 0) return -INFINITY;
  if (x < 0) return std::bit_cast<float>(kNan);
  if (std::isinf(x) || x == 1) return x == 1 ? 0 : x;
  u32 const bits = std::bit_cast<u32>(x);
  i64 const exponent = i64(bits >> kFractionBits) - 127;
  i64 const sum = (exponent << 36) + (evaluate(kLg2, bits & ((1 << kFractionBits) - 1), 12, 837) >> 2);
  u64 const magnitude = u64(sum < 0 ? ~sum : sum);
  int const excess = std::max(0, int(std::bit_width(magnitude)) - 24);
  float const result = std::ldexp(float(magnitude >> excess), excess - 36);
  return sum < 0 ? -result : result;
}

}  // namespace

// ptxas puts these scalings around the units for the forms without .ftz; with .ftz they never apply.
float approximate_ex2(float x) {
  if (x != x) return std::bit_cast<float>(kNan);
  if (!(x < -126)) return ex2_unit(x);
  float const root = ex2_unit(x * 0.5f);
  return root * root;
}

float approximate_lg2(float x) {
  if (x != x) return std::bit_cast<float>(kNan);
  return std::fabs(x) < 0x1p-126f ? lg2_unit(x * 0x1p24f) - 24 : lg2_unit(x);
}

}  // namespace emu
