// Loads and stores of every state space, and the conversion of addresses between them.
#include "families.h"
#include "memory.h"
#include "races.h"
#include "registers.h"

namespace emu {
namespace {

constexpr u32 kSigned = 1, kStrong = 2;

Operand const& element(Instruction const& i, size_t operand, u32 n) {
  Operand const& o = i.operands[operand];
  return o.kind == Operand::kVector ? o.parts[n] : o;
}

// Element n of what the lanes load.
template <class T>
void fill(Warp& w, Instruction const& i, u32 mask, u32 n, Lanes<T> const& values) {
  Operand const& to = element(i, 0, n);
  if constexpr (sizeof(T) < 8)
    if (i.option & kSigned) {
      using Signed = std::make_signed_t<T>;
      return write<Signed>(w, to, mask, reinterpret_cast<Signed const*>(values));
    }
  write<T>(w, to, mask, values);
}

bool all_equal(u64 const (&addresses)[kLanes]) {
  u64 different = 0;
  for (int l = 0; l < kLanes; ++l) different |= addresses[l] ^ addresses[0];
  return different == 0;
}

// What all lanes load from one parameter: much of what a CTA without work executes.
template <class T>
void load_parameter(Warp& w, Instruction const& i, u32 mask, u8 const* from) {
  for (u32 n = 0; n < i.count; ++n) {
    Lanes<T> values;
    std::fill_n(values, kLanes, load<T>(from + n * sizeof(T)));
    fill<T>(w, i, mask, n, values);
  }
}

// i.count elements
template <class T>
void load_memory(Warp& w, Instruction const& i, u32 mask) {
  u64 addresses[kLanes];
  addresses_of(w, i.operands[1], addresses);
  if (i.space == Space::kParameter && all_equal(addresses))
    return load_parameter<T>(w, i, mask, reinterpret_cast<u8 const*>(addresses[0]));
  Races* const r = races(w);
  Access const kind = i.option & kStrong ? Access::kStrongRead : Access::kRead;
  u32 const bytes = i.count * u32(sizeof(T));
  u8 const* from[kLanes];
  for_lanes(mask, [&](int l) {
    from[l] = memory(w, l, addresses[l], bytes, i);
    if (r && is_shared(i, addresses[l])) r->access(w, 1u << l, u32(addresses[l]), bytes, kind);
  });
  for (u32 n = 0; n < i.count; ++n) {
    Lanes<T> values;
    for_lanes(mask, [&](int l) { values[l] = load<T>(from[l] + n * sizeof(T)); });
    fill<T>(w, i, mask, n, values);
  }
}

template <class T>
void store_memory(Warp& w, Instruction const& i, u32 mask) {
  constexpr u32 kBytes = sizeof(T);
  u64 addresses[kLanes];
  addresses_of(w, i.operands[0], addresses);
  Races* const r = races(w);
  for (u32 n = 0; n < i.count; ++n) {
    Operand const& from = element(i, 1, n);
    if (kBytes > 8 && from.kind != Operand::kRegister) fault("a 16-byte immediate");
    Lanes<T> scratch;
    T const* const values = read<T>(w, from, scratch);
    for_lanes(mask, [&](int l) {
      u64 const address = addresses[l] + n * kBytes;
      u8* const place = memory(w, l, address, kBytes, i);
      bool const shared = is_shared(i, address);
      if (r && shared) {
        bool const same = std::memcmp(place, values + l, kBytes) == 0;
        Access const kind = i.option & kStrong ? Access::kAtomic : same ? Access::kRewrite : Access::kWrite;
        r->access(w, 1u << l, u32(address), kBytes, kind);
      }
      std::memcpy(place, values + l, kBytes);
      if (settings.proxy_fences && shared) note_write(w, l, u32(address), kBytes);
    });
  }
}

template <class T>
Execute load_or_store(bool loads) {
  return loads ? load_memory<T> : store_memory<T>;
}

enum Cvta : u32 { kUnchanged, kSharedToGeneric, kGenericToShared };

void convert_address(Warp& w, Instruction const& i, u32 mask) {
  Lanes<u64> scratch, result;
  u64 const* const from = read<u64>(w, i.operands[1], scratch);
  for (int l = 0; l < kLanes; ++l)
    result[l] = i.option == kSharedToGeneric   ? kSharedBit | u32(from[l])
                : i.option == kGenericToShared ? u32(from[l])
                                               : from[l];
  write<u64>(w, i.operands[0], mask, result);
}

Space take_space(Mnemonic& m) {
  if (!m.take_one_of({"shared", "shared::cta", "shared::cluster"}).empty()) return Space::kShared;
  if (m.take("param")) return Space::kParameter;
  if (m.take("global") || m.take("const")) return Space::kGlobal;
  if (m.take("local")) return Space::kLocal;
  return Space::kGeneric;
}

}  // namespace

Execute decode_load_store(Instruction& i, Mnemonic& m) {
  std::string const type = m.type();
  m.take_type();
  if (m.root() == "cvta") {
    bool const to = m.take("to");
    Space const space = take_space(m);
    if (space == Space::kGeneric || space == Space::kLocal) return nullptr;
    i.option = space != Space::kShared ? kUnchanged : to ? kGenericToShared : kSharedToGeneric;
    return convert_address;
  }
  if ((m.root() != "ld" && m.root() != "st") || i.operands.size() != 2 || m.has("async")) return nullptr;
  i.space = take_space(m);
  i.bytes = u16(type_bytes(type));
  std::string const vector = m.take_one_of({"v2", "v4", "v8"});
  i.count = vector.empty() ? 1 : u16(vector[1] - '0');
  i.option = type[0] == 's' ? kSigned : 0;
  if (m.has("volatile") || m.has("relaxed") || m.has("acquire") || m.has("release")) i.option |= kStrong;
  // Execution is sequentially consistent and caches are not modelled.
  m.ignore({"volatile", "relaxed", "acquire", "release", "weak", "cta", "cluster", "gpu", "sys", "nc"});
  m.ignore({"ca", "cg", "cs", "lu", "cv", "wb", "wt", "L2::64B", "L2::128B", "L2::256B"});
  m.ignore({"L1::no_allocate", "L1::evict_first", "L1::evict_last", "L1::evict_normal", "L1::evict_unchanged"});
  m.ignore({"L2::evict_first", "L2::evict_last", "L2::evict_normal"});
  bool const loads = m.root() == "ld";
  switch (i.bytes) {
    case 1: return load_or_store<u8>(loads);
    case 2: return load_or_store<u16>(loads);
    case 4: return load_or_store<u32>(loads);
    case 8: return load_or_store<u64>(loads);
    case 16: return load_or_store<u128>(loads);
    default: return nullptr;
  }
}

}  // namespace emu
