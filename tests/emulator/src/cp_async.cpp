// cp.async: a thread's own small copies to shared memory.
#include "families.h"
#include "mbarrier.h"
#include "races.h"
#include "registers.h"

namespace emu {

void CommitGroups::wait(u32 mask, u32 newest_left) {
  std::erase_if(pending_, [&](Pending& p) {
    if (!has_lane(mask, p.lane) || p.group + newest_left >= committed_[p.lane]) return false;
    p.task();
    return true;
  });
}

void CommitGroups::wait_all(u32 mask) {
  for (Task const& task : take(mask)) task();
}

std::vector<Task> CommitGroups::take(u32 mask) {
  std::vector<Task> tasks;
  std::erase_if(pending_, [&](Pending& p) {
    if (!has_lane(mask, p.lane)) return false;
    tasks.push_back(std::move(p.task));
    return true;
  });
  return tasks;
}

namespace {

// [shared], [global], bytes[, bytes to read; the rest is zero][, cache policy]. i.has_result: with bytes to read
void copy(Warp& w, Instruction const& i, u32 mask) {
  u64 to[kLanes], from[kLanes];
  addresses_of(w, i.operands[0], to);
  addresses_of(w, i.operands[1], from);
  u32 const bytes = u32(i.operands[2].value);
  Lanes<u32> scratch;
  u32 const* const wanted = i.has_result ? read<u32>(w, i.operands[3], scratch) : nullptr;
  Races* const r = races(w);
  if (r) r->begin_operations(w, Races::kCopies);
  for_lanes(mask, [&](int l) {
    u32 const valid = wanted ? std::min(wanted[l], bytes) : bytes, address = u32(to[l]);
    if (address % bytes != 0 || (valid && from[l] % bytes != 0)) fault("a copy of %u bytes that is misaligned", bytes);
    u8 const* const source = valid ? global_memory(from[l], valid, i.text.c_str()) : nullptr;
    shared_memory(*w.cta, address, bytes);
    if (r) r->write_by_copy(w, l, address, bytes);
    Cta* const cta = w.cta;
    auto task = [=] {
      u8* const place = shared_memory(*cta, address, bytes);
      if (valid) std::memcpy(place, source, valid);
      std::memset(place + valid, 0, bytes - valid);
    };
    if (settings.schedule == Schedule::kLate)
      w.copies.add(l, task);
    else
      task();
  });
}

// The mbarrier receives an arrival of each lane when the lane's copies so far have landed.
void arrive_when_done(Warp& w, Instruction const& i, u32 mask) {
  u64 addresses[kLanes];
  addresses_of(w, i.operands[0], addresses);
  std::vector<u32> barriers;
  for_lanes(mask, [&](int l) { barriers.push_back(u32(addresses[l])); });
  if (Races* const r = races(w)) {
    r->use_mbarriers(w, mask, addresses);
    r->arrive_when_copied(w, mask, addresses);
  }
  Cta* const cta = w.cta;
  complete_copy(*cta->cluster, true, [cta, barriers, copies = w.copies.take(mask)] {
    for (Task const& copy : copies) copy();
    for (u32 const barrier : barriers) mbarrier_update(*cta, barrier, 1, 0);
  });
}

void commit(Warp& w, Instruction const&, u32 mask) {
  w.copies.commit(mask);
  if (Races* const r = races(w)) r->commit(w, mask, Races::kCopies);
}
void wait_all(Warp& w, Instruction const&, u32 mask) {
  w.copies.wait_all(mask);
  if (Races* const r = races(w)) r->wait_all(w, mask, Races::kCopies);
}
void wait_group(Warp& w, Instruction const& i, u32 mask) {
  u32 const newest_left = u32(i.operands[0].value);
  w.copies.wait(mask, newest_left);
  if (Races* const r = races(w)) r->wait(w, mask, Races::kCopies, newest_left);
}

}  // namespace

Execute decode_cp_async(Instruction& i, Mnemonic& m) {
  if (m.root() != "cp" || !m.take("async") || m.has("bulk")) return nullptr;
  if (m.take("commit_group")) return commit;
  if (m.take("wait_group")) return wait_group;
  if (m.take("wait_all")) return wait_all;
  if (m.take("mbarrier")) {
    m.ignore({"shared", "shared::cta", "b64"});
    return m.take("arrive") && m.take("noinc") ? arrive_when_done : nullptr;
  }
  if (!m.take("ca") && !m.take("cg")) return nullptr;
  bool const policy = m.take("L2::cache_hint");
  m.ignore({"L2::64B", "L2::128B", "L2::256B"});
  if (m.take_one_of({"shared", "shared::cta"}).empty() || !m.take("global")) return nullptr;
  i.has_result = i.operands.size() == (policy ? 5 : 4);
  return copy;
}

}  // namespace emu
