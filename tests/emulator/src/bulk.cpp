// Bulk copies of contiguous bytes, and st.async: they complete at an mbarrier, or in commit groups.
#include <array>

#include "families.h"
#include "mbarrier.h"
#include "races.h"
#include "registers.h"

namespace emu {
namespace {

u32 shared_address(Warp const& w, Operand const& o, int lane) {
  return u32(read_lane<u64>(w, o.parts[0], lane) + o.value);
}

void require_16(u64 a, u64 b, u32 bytes) {
  if (a % 16 != 0 || b % 16 != 0 || bytes % 16 != 0) fault("a bulk copy that is not aligned to 16 bytes");
}

// [shared], [global], bytes, [mbarrier]
void load_bulk(Warp& w, Instruction const& i, u32 mask) {
  for_lanes(mask, [&](int l) {
    u32 const to = shared_address(w, i.operands[0], l), bytes = read_lane<u32>(w, i.operands[2], l);
    u32 const barrier = shared_address(w, i.operands[3], l);
    u64 const from = read_lane<u64>(w, i.operands[1].parts[0], l) + i.operands[1].value;
    require_16(to, from, bytes);
    u8 const* const source = global_memory(from, bytes, i.text.c_str());
    Cta* const cta = w.cta;
    if (Races* const r = races(w)) r->write_by_transaction(w, l, to, bytes, barrier, Access::kAsyncWrite);
    complete_copy(*cta->cluster, true, [=] {
      std::memcpy(shared_memory(*cta, to, bytes), source, bytes);
      mbarrier_update(*cta, barrier, 0, -i64(bytes));
    });
  });
}

// [shared of any CTA], [shared], bytes, [mbarrier]
void copy_bulk_to_cta(Warp& w, Instruction const& i, u32 mask) {
  for_lanes(mask, [&](int l) {
    u32 const to = shared_address(w, i.operands[0], l), from = shared_address(w, i.operands[1], l);
    u32 const bytes = read_lane<u32>(w, i.operands[2], l), barrier = shared_address(w, i.operands[3], l);
    require_16(to, from, bytes);
    if (to >> 24 != barrier >> 24) fault("a bulk copy that completes at an mbarrier of another CTA");
    Cta* const cta = w.cta;
    Races* const r = races(w);
    if (r) r->begin_transaction_read(w, l, barrier);
    check_async_read(*cta, from, bytes, "a bulk copy");
    if (r) {
      r->end_reader();
      r->write_by_transaction(w, l, to, bytes, barrier, Access::kAsyncWrite);
    }
    complete_copy(*cta->cluster, true, [=] {
      std::memcpy(shared_memory(*cta, to, bytes), shared_memory(*cta, from, bytes), bytes);
      mbarrier_update(*cta, barrier, 0, -i64(bytes));
    });
  });
}

// [global], [shared], bytes
void store_bulk(Warp& w, Instruction const& i, u32 mask) {
  Races* const r = races(w);
  if (r) r->begin_operations(w, Races::kBulkStores);
  for_lanes(mask, [&](int l) {
    u64 const to = read_lane<u64>(w, i.operands[0].parts[0], l) + i.operands[0].value;
    u32 const from = shared_address(w, i.operands[1], l), bytes = read_lane<u32>(w, i.operands[2], l);
    require_16(to, from, bytes);
    u8* const target = global_memory(to, bytes, i.text.c_str());
    Cta* const cta = w.cta;
    if (r) r->begin_bulk_store(w, l);
    auto task = [=] {
      check_async_read(*cta, from, bytes, "a bulk store");
      std::memcpy(target, shared_memory(*cta, from, bytes), bytes);
    };
    if (settings.schedule == Schedule::kLate)
      w.bulk_stores.add(l, task);
    else
      task();
    if (r) r->end_reader();
  });
}

void commit(Warp& w, Instruction const&, u32 mask) {
  w.bulk_stores.commit(mask);
  if (Races* const r = races(w)) r->commit(w, mask, Races::kBulkStores);
}
// With .read, too, everything is done then: that the stores' results come later is not modelled.
void wait_group(Warp& w, Instruction const& i, u32 mask) {
  u32 const newest_left = u32(i.operands[0].value);
  w.bulk_stores.wait(mask, newest_left);
  if (Races* const r = races(w)) r->wait(w, mask, Races::kBulkStores, newest_left);
}

// [shared], value or {values}, [mbarrier]. i.bytes an element
void store_async(Warp& w, Instruction const& i, u32 mask) {
  for_lanes(mask, [&](int l) {
    u32 const to = shared_address(w, i.operands[0], l), barrier = shared_address(w, i.operands[2], l);
    std::array<u8, 32> data;
    u32 const bytes = i.bytes * i.count;
    for (u32 n = 0; n < i.count; ++n) {
      Operand const& from = i.operands[1].kind == Operand::kVector ? i.operands[1].parts[n] : i.operands[1];
      u64 const value = read_lane<u64>(w, from, l);
      std::memcpy(&data[n * i.bytes], &value, i.bytes);
    }
    Cta* const cta = w.cta;
    if (Races* const r = races(w)) r->write_by_transaction(w, l, to, bytes, barrier, Access::kWrite);
    complete_copy(*cta->cluster, true, [=] {
      std::memcpy(shared_memory(*cta, to, bytes), data.data(), bytes);
      mbarrier_update(*cta, barrier, 0, -i64(bytes));
    });
  });
}

}  // namespace

Execute decode_bulk(Instruction& i, Mnemonic& m) {
  if (m.root() == "st" && m.take("async")) {
    i.bytes = u16(type_bytes(m.type()));
    m.take_type();
    m.ignore({"weak", "shared::cluster", "mbarrier::complete_tx::bytes"});
    std::string const vector = m.take_one_of({"v2", "v4"});
    i.count = vector.empty() ? 1 : u16(vector[1] - '0');
    return i.bytes ? store_async : nullptr;
  }
  if (m.root() != "cp" || !m.take("async") || !m.take("bulk") || m.has("tensor")) return nullptr;
  if (m.take("commit_group")) return commit;
  if (m.take("wait_group")) {
    m.take("read");
    return wait_group;
  }
  if (m.has("prefetch")) return nullptr;  // hint.cpp
  m.take("L2::cache_hint");
  if (m.take_at(3) == "global") return m.take("shared::cta") && m.take("bulk_group") ? store_bulk : nullptr;
  if (m.has("shared::cluster") && m.take("shared::cta")) {
    m.take("shared::cluster");
    return m.take("mbarrier::complete_tx::bytes") ? copy_bulk_to_cta : nullptr;
  }
  if (m.take_one_of({"shared::cluster", "shared::cta"}).empty() || !m.take("global")) return nullptr;
  return m.take("mbarrier::complete_tx::bytes") ? load_bulk : nullptr;
}

}  // namespace emu
