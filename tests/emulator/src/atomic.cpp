// Atomic operations; lanes take part in their order.
#include "families.h"
#include "formats.h"
#include "memory.h"
#include "races.h"
#include "registers.h"

namespace emu {
namespace {

enum Operation : u32 { kAdd, kMin, kMax, kAnd, kOr, kXor, kExchange, kCompareAndSwap, kIncrement, kDecrement };
constexpr char const* kNames[] = {"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"};

template <class T>
T combine(u32 operation, T old, T operand, T third) {
  switch (operation) {
    case kAdd: return T(old + operand);
    case kMin: return std::min(old, operand);
    case kMax: return std::max(old, operand);
    case kExchange: return operand;
    case kCompareAndSwap: return old == operand ? third : old;
  }
  if constexpr (std::is_integral_v<T>) {
    switch (operation) {
      case kAnd: return old & operand;
      case kOr: return old | operand;
      case kXor: return old ^ operand;
      case kIncrement: return old >= operand ? 0 : old + 1;
      case kDecrement: return old == 0 || old > operand ? operand : old - 1;
    }
  }
  fault("no such atomic operation on floats");
}

// In global memory subnormal numbers are flushed, in shared memory not.
float add_floats(float a, float b, bool shared) {
  float const sum = shared ? a + b : flush(flush(a) + flush(b));
  return sum == sum ? sum : std::bit_cast<float>(kNan);
}

// i.option: the operation; i.has_result: atom, not red
template <class T>
void atomic(Warp& w, Instruction const& i, u32 mask) {
  size_t const first = i.has_result ? 1 : 0;
  u64 addresses[kLanes];
  addresses_of(w, i.operands[first], addresses);
  Lanes<T> sb, sc{}, old;
  T const* const b = read<T>(w, i.operands[first + 1], sb);
  T const* const c = i.option == kCompareAndSwap ? read<T>(w, i.operands[first + 2], sc) : sc;
  for_lanes(mask, [&](int l) {
    u8* const place = memory(w, l, addresses[l], sizeof(T), i);
    old[l] = load<T>(place);
    T now;
    if constexpr (std::is_same_v<T, float>)
      now = i.option == kAdd ? add_floats(old[l], b[l], is_shared(i, addresses[l]))
                             : combine<T>(i.option, old[l], b[l], c[l]);
    else
      now = combine<T>(i.option, old[l], b[l], c[l]);
    std::memcpy(place, &now, sizeof(T));
    if (!is_shared(i, addresses[l])) return;
    note_write(w, l, u32(addresses[l]), sizeof(T));
    if (Races* const r = races(w)) r->access(w, 1u << l, u32(addresses[l]), sizeof(T), Access::kAtomic);
  });
  if (i.has_result) write<T>(w, i.operands[0], mask, old);
}

}  // namespace

Execute decode_atomic(Instruction& i, Mnemonic& m) {
  if ((m.root() != "atom" && m.root() != "red") || m.has("async")) return nullptr;
  std::string const type = m.type();
  m.take_type();
  i.has_result = m.root() == "atom";
  i.space = !m.take_one_of({"shared", "shared::cta", "shared::cluster"}).empty() ? Space::kShared
            : m.take("global")                                                   ? Space::kGlobal
                                                                                 : Space::kGeneric;
  m.ignore({"relaxed", "acquire", "release", "acq_rel", "cta", "cluster", "gpu", "sys"});
  bool known = false;
  for (u32 n = 0; n < std::size(kNames) && !known; ++n)
    if (m.take(kNames[n])) {
      i.option = n;
      known = true;
    }
  if (!known) return nullptr;
  if (type == "f32") return atomic<float>;
  if (type == "f64") return atomic<double>;
  if (type == "b16" || type == "u16" || type == "s16") return nullptr;
  return by_integer_type(type, []<class T>() -> Execute { return atomic<T>; });
}

}  // namespace emu
