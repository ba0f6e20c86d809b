// Comparison and selection.
#include "families.h"
#include "registers.h"

namespace emu {
namespace {

constexpr auto equal = [](auto a, auto b) { return u8(a == b); };
constexpr auto not_equal = [](auto a, auto b) { return u8(a != b); };
constexpr auto less = [](auto a, auto b) { return u8(a < b); };
constexpr auto less_equal = [](auto a, auto b) { return u8(a <= b); };
constexpr auto greater = [](auto a, auto b) { return u8(a > b); };
constexpr auto greater_equal = [](auto a, auto b) { return u8(a >= b); };
// Of floats, C++'s != is the unordered comparison, the others are the ordered ones.
constexpr auto ordered_not_equal = [](float a, float b) { return u8(a < b || a > b); };
template <auto f>
constexpr auto or_unordered = [](float a, float b) { return u8(f(a, b) || a != a || b != b); };
constexpr auto both_numbers = [](float a, float b) { return u8(a == a && b == b); };
constexpr auto some_nan = [](float a, float b) { return u8(a != a || b != b); };

template <class T>
Execute compare(std::string const& name) {
  if (name == "eq") return binary<T, T, u8, equal>;
  if (name == "ne") return binary<T, T, u8, not_equal>;
  if (name == "lt" || name == "lo") return binary<T, T, u8, less>;
  if (name == "le" || name == "ls") return binary<T, T, u8, less_equal>;
  if (name == "gt" || name == "hi") return binary<T, T, u8, greater>;
  if (name == "ge" || name == "hs") return binary<T, T, u8, greater_equal>;
  return nullptr;
}

Execute compare_floats(std::string const& name) {
  if (name == "ne") return binary<float, float, u8, ordered_not_equal>;
  if (name == "equ") return binary<float, float, u8, or_unordered<equal>>;
  if (name == "neu") return binary<float, float, u8, not_equal>;
  if (name == "ltu") return binary<float, float, u8, or_unordered<less>>;
  if (name == "leu") return binary<float, float, u8, or_unordered<less_equal>>;
  if (name == "gtu") return binary<float, float, u8, or_unordered<greater>>;
  if (name == "geu") return binary<float, float, u8, or_unordered<greater_equal>>;
  if (name == "num") return binary<float, float, u8, both_numbers>;
  if (name == "nan") return binary<float, float, u8, some_nan>;
  return name == "lo" || name == "ls" || name == "hi" || name == "hs" ? nullptr : compare<float>(name);
}

template <class T>
void select(Warp& w, Instruction const& i, u32 mask) {
  Lanes<T> sa, sb, result;
  Lanes<u8> sp;
  T const *const a = read<T>(w, i.operands[1], sa), *const b = read<T>(w, i.operands[2], sb);
  u8 const* const p = read<u8>(w, i.operands[3], sp);
  for (int l = 0; l < kLanes; ++l) result[l] = p[l] ? a[l] : b[l];
  write<T>(w, i.operands[0], mask, result);
}

}  // namespace

Execute decode_select(Instruction& i, Mnemonic& m) {
  std::string const type = m.type();
  m.take_type();
  if (m.root() == "setp" && i.operands.size() == 3) {  // without a second result and without a predicate to combine
    std::string const name = m.take_at(1);
    if (type == "f32") return compare_floats(name);
    return by_integer_type(type, [&]<class T>() { return compare<T>(name); });
  }
  if (m.root() == "selp") {
    switch (type_bytes(type)) {
      case 2: return select<u16>;
      case 4: return select<u32>;
      case 8: return select<u64>;
    }
  }
  return nullptr;
}

}  // namespace emu
