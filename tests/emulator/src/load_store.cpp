// Loads and stores of every state space, and the conversion of addresses between them.
#include "families.h"
#include "memory.h"
#include "races.h"
#include "registers.h"

namespace emu {
namespace {

constexpr u32 kSigned = 1, kStrong = 2;

// i.bytes an element, i.count elements
void load_memory(Warp& w, Instruction const& i, u32 mask) {
  u64 addresses[kLanes];
  addresses_of(w, i.operands[1], addresses);
  Races* const r = races(w);
  Access const kind = i.option & kStrong ? Access::kStrongRead : Access::kRead;
  u32 const bytes = i.bytes;
  for_lanes(mask, [&](int l) {
    u8 const* const from = memory(w, l, addresses[l], i.count * bytes, i);
    if (r && is_shared(i, addresses[l])) r->access(w, 1u << l, u32(addresses[l]), i.count * bytes, kind);
    for (u32 n = 0; n < i.count; ++n) {
      Operand const& to = i.operands[0].kind == Operand::kVector ? i.operands[0].parts[n] : i.operands[0];
      if (to.kind == Operand::kNone) continue;
      u8* const lane = w.registers + to.offset + l * to.width;
      if (to.width > 8) {
        std::memset(lane, 0, to.width);
        std::memcpy(lane, from + n * bytes, bytes);
        continue;
      }
      i64 value = 0;
      std::memcpy(&value, from + n * bytes, bytes);
      u32 const unused = 64 - 8 * bytes;
      if (i.option & kSigned) value = i64(u64(value) << unused) >> unused;
      std::memcpy(lane, &value, to.width);
    }
  });
}

void store_memory(Warp& w, Instruction const& i, u32 mask) {
  u64 addresses[kLanes];
  addresses_of(w, i.operands[0], addresses);
  Races* const r = races(w);
  u32 const bytes = i.bytes;
  for (u32 n = 0; n < i.count; ++n) {
    Operand const& from = i.operands[1].kind == Operand::kVector ? i.operands[1].parts[n] : i.operands[1];
    Lanes<u64> scratch;
    u8 const* values;
    u32 stride;
    if (bytes > 8) {
      if (from.kind != Operand::kRegister) fault("a 16-byte immediate");
      values = w.registers + from.offset;
      stride = from.width;
    } else {
      values = reinterpret_cast<u8 const*>(read<u64>(w, from, scratch));
      stride = 8;
    }
    for_lanes(mask, [&](int l) {
      u64 const address = addresses[l] + n * bytes;
      u8* const place = memory(w, l, address, bytes, i);
      u8 const* const value = values + l * stride;
      if (r && is_shared(i, address)) {
        bool const same = std::memcmp(place, value, bytes) == 0;
        Access const kind = i.option & kStrong ? Access::kAtomic : same ? Access::kRewrite : Access::kWrite;
        r->access(w, 1u << l, u32(address), bytes, kind);
      }
      std::memcpy(place, value, bytes);
      if (settings.proxy_fences && is_shared(i, address)) note_write(w, l, u32(address), bytes);
    });
  }
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
  if (i.bytes == 0) return nullptr;
  return m.root() == "ld" ? load_memory : store_memory;
}

}  // namespace emu
