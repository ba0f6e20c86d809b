// TMA: boxes of tensors, to and from shared memory.
#include "tensor_map.h"

#include <array>

#include "families.h"
#include "mbarrier.h"
#include "races.h"
#include "registers.h"

namespace emu {
namespace {

using Coordinates = std::array<i32, 5>;
constexpr u32 kChunk = 16;  // what a swizzle moves as one

TensorMap tensor_map(u64 address) {
  auto const map = load<TensorMap>(reinterpret_cast<void const*>(address));
  if (map.magic != TensorMap::kMagic) fault("no tensor map at %#lx", address);
  return map;
}

// Calls f(global address, bytes in range, shared offset) for each 16 bytes of the box; what is out of range lies behind
// the bytes in range. (At an edge: single elements.)
template <class F>
void for_each_chunk(TensorMap const& map, Coordinates const& start, u32 const (&box)[5], u32 first_offset, F const& f) {
  if (i64(start[0]) * map.element_bytes % kChunk != 0)
    fault("TMA from column %d, which is not at a multiple of 16 bytes", start[0]);
  u32 const row_bytes = box[0] * map.element_bytes, per_chunk = kChunk / map.element_bytes;
  u32 offset = first_offset;
  u32 at[5] = {};
  for (;;) {
    u64 row = map.address;
    bool inside = true;
    for (int d = 1; d < map.rank; ++d) {
      i64 const x = i64(start[d]) + at[d];
      inside = inside && x >= 0 && x < i64(map.size[d]);
      row += u64(x) * map.stride[d - 1];
    }
    for (u32 byte = 0; byte < row_bytes; byte += kChunk, offset += kChunk) {
      i64 const column = i64(start[0]) + byte / map.element_bytes;
      if (inside && column >= 0 && column + per_chunk <= map.size[0]) {
        f(row + u64(column) * map.element_bytes, kChunk, offset);
        continue;
      }
      for (u32 e = 0; e < per_chunk; ++e) {
        bool const ok = inside && column + e >= 0 && column + e < i64(map.size[0]);
        f(row + u64(column + e) * map.element_bytes, ok ? map.element_bytes : 0, offset + e * map.element_bytes);
      }
    }
    int d = 1;
    while (d < map.rank && ++at[d] == box[d]) at[d++] = 0;
    if (d == map.rank) return;
  }
}

// By lane `lane` of warp w.
void load_box(Warp& w, int lane, TensorMap const& map, u32 to, Coordinates const& start, bool gather, u32 barrier) {
  Cta& cta = *w.cta;
  Races* const races_here = races(w);
  if (to % 128 != 0) fault("TMA to shared address %#x, which is not a multiple of 128", to);
  u32 bytes = map.element_bytes;
  auto const copy = [&](u64 from, u32 valid, u32 offset) {
    u32 const address = swizzled(to + offset, map.swizzle);
    u8* const place = shared_memory(cta, address, map.element_bytes);
    if (races_here) races_here->write_by_transaction(w, lane, address, map.element_bytes, barrier, Access::kAsyncWrite);
    if (valid)
      std::memcpy(place, global_memory(from, valid, "TMA load"), valid);
    else
      std::memset(place, 0, map.element_bytes);
  };
  if (gather) {  // four rows of a matrix: {column, row, row, row, row}
    u32 const box[5] = {map.box[0], 1, 1, 1, 1};
    u32 const row_bytes = map.box[0] * map.element_bytes;
    for (u32 n = 0; n < 4; ++n) for_each_chunk(map, {start[0], start[1 + n]}, box, n * row_bytes, copy);
    bytes = 4 * row_bytes;
  } else {
    u32 box[5];
    for (int d = 0; d < 5; ++d) {
      box[d] = d < map.rank ? map.box[d] : 1;
      bytes *= box[d];
    }
    for_each_chunk(map, start, box, 0, copy);
  }
  mbarrier_update(cta, barrier, 0, -i64(bytes));
}

void store_box(Cta& cta, TensorMap const& map, u32 from, Coordinates const& start) {
  if (from % 128 != 0) fault("TMA from shared address %#x, which is not a multiple of 128", from);
  for (i32 const x : start)
    if (x < 0) fault("TMA store from coordinate %d on", x);
  u32 box[5];
  for (int d = 0; d < 5; ++d) box[d] = d < map.rank ? map.box[d] : 1;
  for_each_chunk(map, start, box, 0, [&](u64 to, u32 valid, u32 offset) {
    if (valid == 0) return;
    u32 const place = swizzled(from + offset, map.swizzle);
    check_async_read(cta, place, valid, "a TMA store");
    std::memcpy(global_memory(to, valid, "TMA store"), shared_memory(cta, place, valid), valid);
  });
}

u64 address_of(Warp const& w, Operand const& o, int lane) { return read_lane<u64>(w, o.parts[0], lane) + o.value; }

Coordinates coordinates(Warp const& w, Operand const& o, int lane) {
  Coordinates c = {};
  std::vector<Operand> const& parts = o.parts.at(1).parts;
  if (parts.size() > c.size()) fault("a tensor of more than five dimensions");
  for (size_t n = 0; n < parts.size(); ++n) c[n] = read_lane<i32>(w, parts[n], lane);
  return c;
}

constexpr u32 kGather = 1, kMulticast = 2;

// [shared], [map, {coordinates}], [mbarrier][, CTAs][, cache policy]
void load_tensor(Warp& w, Instruction const& i, u32 mask) {
  for_lanes(mask, [&](int l) {
    Cta& cta = *w.cta;
    u32 const to = u32(address_of(w, i.operands[0], l)), barrier = u32(address_of(w, i.operands[2], l));
    TensorMap const map = tensor_map(address_of(w, i.operands[1], l));
    Coordinates const start = coordinates(w, i.operands[1], l);
    bool const gather = i.option & kGather;
    auto const copy = [&](u32 target, u32 target_barrier) {
      complete_copy(*cta.cluster, true, [&w, l, map, target, start, gather, target_barrier] {
        load_box(w, l, map, target, start, gather, target_barrier);
      });
    };
    if (!(i.option & kMulticast)) return copy(to, barrier);
    u32 const ctas = read_lane<u32>(w, i.operands[3], l) & 0xffff;  // the same offsets in each
    for (u32 rank = 0; rank < cta.cluster->ctas.size(); ++rank)
      if (has_lane(ctas, int(rank))) copy(in_cta(rank, to), in_cta(rank, barrier));
  });
}

// [map, {coordinates}], [shared][, cache policy]
void store_tensor(Warp& w, Instruction const& i, u32 mask) {
  Races* const r = races(w);
  if (r) r->begin_operations(w, Races::kBulkStores);
  for_lanes(mask, [&](int l) {
    Cta& cta = *w.cta;
    TensorMap const map = tensor_map(address_of(w, i.operands[0], l));
    Coordinates const start = coordinates(w, i.operands[0], l);
    u32 const from = u32(address_of(w, i.operands[1], l));
    if (r) r->begin_bulk_store(w, l);
    auto task = [&cta, map, from, start] { store_box(cta, map, from, start); };
    if (settings.schedule == Schedule::kLate)
      w.bulk_stores.add(l, task);
    else
      task();
    if (r) r->end_reader();
  });
}

}  // namespace

Execute decode_tma(Instruction& i, Mnemonic& m) {
  if (m.root() != "cp" || !m.take("async") || !m.take("bulk") || !m.take("tensor") || m.has("prefetch")) return nullptr;
  if (m.take_one_of({"1d", "2d", "3d", "4d", "5d"}).empty()) return nullptr;
  m.ignore({"tile", "L2::cache_hint", "cta_group::1", "cta_group::2"});
  if (m.take("mbarrier::complete_tx::bytes")) {
    m.ignore({"shared::cluster", "shared::cta", "global"});
    i.option = (m.take("tile::gather4") ? kGather : 0) | (m.take("multicast::cluster") ? kMulticast : 0);
    return load_tensor;
  }
  return m.take("bulk_group") && m.take("global") && m.take("shared::cta") ? store_tensor : nullptr;
}

}  // namespace emu
