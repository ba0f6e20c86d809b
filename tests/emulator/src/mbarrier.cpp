#include "mbarrier.h"

#include "families.h"
#include "memory.h"
#include "races.h"
#include "registers.h"

namespace emu {

MbarrierState mbarrier_state(Cta& cta, u32 address) {
  if (address % 8 != 0) fault("mbarrier at the misaligned address %#x", address);
  u64 const word = load<u64>(shared_memory(cta, address, 8));
  auto const state = MbarrierState::from_word(word);
  constexpr u32 kPoisonCount = 0xfffff;
  if (state.expected == 0 || state.expected == kPoisonCount)
    fault("mbarrier %#x is used but not initialised (it holds %#lx)", address, word);
  return state;
}

void mbarrier_update(Cta& cta, u32 address, u32 arrivals, i64 bytes) {
  MbarrierState state = mbarrier_state(cta, address);
  if (arrivals > state.pending)
    fault("mbarrier %#x: %u arrivals where %u are pending of %u", address, arrivals, state.pending, state.expected);
  state.bytes += bytes;
  state.pending -= arrivals;
  if (state.pending == 0 && state.bytes == 0) {
    state.phase ^= 1;
    ++cta.cluster->phases_ended;
    if (Races* const races = cta.cluster->races.get()) races->end_phase(address);
    state.pending = state.expected;
  }
  u64 const word = state.word();
  std::memcpy(shared_memory(cta, address, 8), &word, 8);
}

namespace {

void init(Warp& w, Instruction const& i, u32 mask) {
  u64 addresses[kLanes];
  addresses_of(w, i.operands[0], addresses);
  Lanes<u32> scratch;
  u32 const* const count = read<u32>(w, i.operands[1], scratch);
  for_lanes(mask, [&](int l) {
    u32 const address = u32(addresses[l]);
    if (address % 8 != 0) fault("mbarrier at the misaligned address %#x", address);
    u64 const word = MbarrierState{0, count[l], count[l], 0}.word();
    std::memcpy(shared_memory(*w.cta, address, 8), &word, 8);
    if (address >> 24 == w.cta->rank) w.cta->mbarriers.insert(address);
    if (Races* const r = races(w)) r->access(w, 1u << l, address, 8, Access::kWrite);
  });
}

void invalidate(Warp& w, Instruction const& i, u32 mask) {
  u64 addresses[kLanes];
  addresses_of(w, i.operands[0], addresses);
  for_lanes(mask, [&](int l) {
    mbarrier_state(*w.cta, u32(addresses[l]));
    std::memset(shared_memory(*w.cta, u32(addresses[l]), 8), 0xff, 8);
    w.cta->mbarriers.erase(u32(addresses[l]));
  });
}

enum Update : u32 { kArrive, kArriveExpect, kExpect, kComplete };

// [_,] [address] [, count or bytes]
void update(Warp& w, Instruction const& i, u32 mask) {
  size_t const place = i.operands[0].kind == Operand::kMemory ? 0 : 1;
  u64 addresses[kLanes];
  addresses_of(w, i.operands[place], addresses);
  Lanes<u32> scratch;
  u32 const* const number = i.operands.size() > place + 1 ? read<u32>(w, i.operands[place + 1], scratch) : nullptr;
  if (Races* const r = races(w)) {
    r->visit_mbarriers(w, mask, addresses);
    if (i.option == kArrive || i.option == kArriveExpect) r->arrive(w, mask, addresses);
  }
  for_lanes(mask, [&](int l) {
    u32 const address = u32(addresses[l]), n = number ? number[l] : 1;
    switch (i.option) {
      case kArrive: return mbarrier_update(*w.cta, address, n, 0);
      case kArriveExpect: return mbarrier_update(*w.cta, address, 1, n);
      case kExpect: return mbarrier_update(*w.cta, address, 0, n);
      case kComplete: return mbarrier_update(*w.cta, address, 0, -i64(n));
    }
  });
  if (Races* const r = races(w)) r->use_mbarriers(w, mask, addresses);
}

// p, [address], parity[, time]. Blocks until some lane's phase has passed, as try_wait may.
void try_wait(Warp& w, Instruction const& i, u32 mask) {
  u64 addresses[kLanes];
  addresses_of(w, i.operands[1], addresses);
  Lanes<u32> scratch;
  u32 const* const parity = read<u32>(w, i.operands[2], scratch);
  Lanes<u8> passed = {};
  u32 through = 0;
  for_lanes(mask, [&](int l) {
    passed[l] = mbarrier_state(*w.cta, u32(addresses[l])).phase != (parity[l] & 1);
    through |= u32(passed[l]) << l;
  });
  if (Races* const r = races(w)) {
    r->use_mbarriers(w, mask, addresses);
    r->pass(w, through, addresses);
  }
  if (through != 0) {
    see_writes(w);
    return write<u8>(w, i.operands[0], mask, passed);
  }
  Group& group = w.group();
  group.wait = Group::kMbarrier;
  group.address = u32(addresses[first_lane(mask)]);
  group.parity = parity[first_lane(mask)] & 1;
}

}  // namespace

Execute decode_mbarrier(Instruction& i, Mnemonic& m) {
  if (m.root() != "mbarrier" || m.type() != "b64") return nullptr;
  m.take_type();
  m.ignore({"shared", "shared::cta", "shared::cluster"});
  if (m.take("init")) return init;
  if (m.take("inval")) return invalidate;
  m.ignore({"release", "acquire", "relaxed", "cta", "cluster"});
  if (m.take("try_wait")) return m.take("parity") ? try_wait : nullptr;
  bool const state_wanted = !i.operands.empty() && i.operands[0].kind == Operand::kRegister;
  if (state_wanted) return nullptr;
  bool const arrive = m.take("arrive"), expect = m.take("expect_tx");
  i.option = arrive ? (expect ? kArriveExpect : kArrive) : expect ? kExpect : kComplete;
  return arrive || expect || m.take("complete_tx") ? update : nullptr;
}

}  // namespace emu
