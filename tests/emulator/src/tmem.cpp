// tcgen05: allocation of tensor memory, and moves to, from and within it.
#include "tmem.h"

#include <cstdlib>

#include "families.h"
#include "matrix.h"
#include "memory.h"
#include "races.h"
#include "registers.h"
#include "tmem_loads.h"

namespace emu {
namespace {

constexpr u32 kPoison = 0x7fffdead;  // NaN as float32 and as a pair of bf16
constexpr u32 kNotLoaded = 0x7fbadbad;

// [shared], columns: the address goes to shared memory
void allocate(Warp& w, Instruction const& i, u32 mask) {
  if (!converged(w, kAllLanes)) return;
  Cta& cta = *w.cta;
  u32 const columns = read_lane<u32>(w, i.operands[1], first_lane(mask)), address = cta.tmem_allocated;
  if (columns < 32 || !std::has_single_bit(columns)) fault("tensor memory of %u columns", columns);
  if (address + columns > kTmemColumns)
    fault("%u more columns of tensor memory than are left would wait forever", columns);
  cta.tmem_allocated += columns;
  cta.tmem.resize(kTmemLanes * kTmemColumns);
  for (u32 lane = 0; lane < kTmemLanes; ++lane) std::fill_n(&cta.tmem[lane * kTmemColumns + address], columns, kPoison);
  u64 const to = read_lane<u64>(w, i.operands[0].parts[0], first_lane(mask)) + i.operands[0].value;
  if (Races* const r = races(w)) {
    r->allocate_tmem(w, {&cta, address, columns});
    r->access(w, mask & -mask, u32(to), 4, Access::kWrite);
  }
  std::memcpy(shared_memory(cta, u32(to), 4), &address, 4);
}

void free_columns(Warp& w, Instruction const& i, u32 mask) {
  if (!converged(w, kAllLanes)) return;
  u32 const columns = read_lane<u32>(w, i.operands[1], first_lane(mask));
  if (columns > w.cta->tmem_allocated)
    fault("%u columns of tensor memory are freed of %u", columns, w.cta->tmem_allocated);
  if (Races* const r = races(w)) r->free_tmem(w, {w.cta, w.cta->tmem_allocated - columns, columns});
  w.cta->tmem_allocated -= columns;
}

// A warp reaches the quarter of the lanes that its number implies; its addresses may also say lane 0.
u32 first_tmem_lane(Warp const& w, u32 address) {
  u32 const lane = address >> 16, own = u32(w.id % 4 * kLanes);
  if (lane != 0 && lane != own) fault("warp %d cannot reach tensor memory lane %u", w.id, lane);
  return own;
}

// {registers}, [tmem]
void load_tmem(Warp& w, Instruction const& i, u32 mask) {
  if (!converged(w, kAllLanes)) return;
  u32 const address = u32(read_lane<u64>(w, i.operands[1].parts[0], 0) + i.operands[1].value);
  u32 const column = tmem_column(address), first = first_tmem_lane(w, address);
  auto const& registers = i.operands[0].parts;
  tmem_cell(*w.cta, first, column + u32(registers.size()) - 1);
  if (Races* const r = races(w)) r->load_tmem(w, {w.cta, column, u32(registers.size()), w.id % int(kTmemQuarters)});
  note_tmem_load(w, i);
  auto const load = [&w, &registers, column, first, mask] {
    for (u32 n = 0; n < registers.size(); ++n) {
      Lanes<u32> values;
      for (u32 l = 0; l < u32(kLanes); ++l) values[l] = tmem_cell(*w.cta, first + l, column + n);
      write<u32>(w, registers[n], mask, values);
    }
  };
  if (!settings.late_tmem_loads) return load();
  Lanes<u32> poison;
  std::fill_n(poison, kLanes, kNotLoaded);
  for (Operand const& o : registers) write<u32>(w, o, mask, poison);
  w.tmem_loads.push_back(load);
}

// [tmem], {registers}
void store_tmem(Warp& w, Instruction const& i, u32) {
  if (!converged(w, kAllLanes)) return;
  u32 const address = u32(read_lane<u64>(w, i.operands[0].parts[0], 0) + i.operands[0].value);
  u32 const column = tmem_column(address), first = first_tmem_lane(w, address);
  std::vector<u32> values;
  for (Operand const& o : i.operands[1].parts) {
    Lanes<u32> scratch;
    u32 const* const lanes = read<u32>(w, o, scratch);
    values.insert(values.end(), lanes, lanes + kLanes);
  }
  Cta* const cta = w.cta;
  u32 const columns = u32(values.size()) / kLanes;
  tmem_cell(*cta, first, column + columns - 1);
  if (Races* const r = races(w)) r->store_tmem(w, {cta, column, columns, w.id % int(kTmemQuarters)});
  auto store = [cta, values, column, first] {
    for (u32 n = 0; n < values.size(); ++n) tmem_cell(*cta, first + n % kLanes, column + n / kLanes) = values[n];
  };
  if (settings.schedule == Schedule::kLate)
    w.tmem_stores.push_back(store);
  else
    store();
}

void finish(std::vector<Task>& tasks) {
  for (Task const& task : tasks) task();
  tasks.clear();
}
void wait_loads(Warp& w, Instruction const&, u32) {
  finish(w.tmem_loads);
  w.loading.clear();
  if (Races* const r = races(w)) r->wait_tmem(w, Races::kTmemLoads);
}
void wait_stores(Warp& w, Instruction const&, u32) {
  finish(w.tmem_stores);
  if (Races* const r = races(w)) r->wait_tmem(w, Races::kTmemStores);
}

// [tmem], shared matrix: i.count rows of 16 bytes (64 rows, which go to two halves of the lanes) or 32 (128 rows);
// i.option: 2 for a pair of CTAs
void copy_to_tmem(Warp& w, Instruction const& i, u32 mask) {
  for_lanes(mask, [&](int l) {
    u32 const column = tmem_column(u32(read_lane<u64>(w, i.operands[0].parts[0], l) + i.operands[0].value));
    u64 const descriptor = read_lane<u64>(w, i.operands[1], l);
    Cta& cta = *w.cta;
    int const rows = i.count, pair = int(i.option), words = rows == 128 ? 8 : 4;
    Races* const r = races(w);
    if (r) r->begin_tensor(w, l, {.kind = TensorPipeline::kCopy});
    complete_tensor(*cta.cluster, [=, &cta] {
      for (int n = 0; n < pair; ++n) {
        Cta& member = pair_member(cta, pair, n);
        if (r) r->write_tmem_by_tensor({&member, column, u32(words)});
        std::vector<u16> elements(size_t(rows * words * 2));
        fetch(member, MatrixDescriptor::of_tcgen05(descriptor), {0, rows, 0, words * 2}, false, Element::kBf16,
              elements.data());
        for (int row = 0; row < rows; ++row)
          for (int word = 0; word < words; ++word) {
            u32 const value = load<u32>(&elements[size_t((row * words + word) * 2)]);
            for (int lane = row; lane < int(kTmemLanes); lane += rows)
              tmem_cell(member, u32(lane), column + u32(word)) = value;
          }
      }
    });
    if (r) r->end_reader();
  });
}

}  // namespace

Execute decode_tmem(Instruction& i, Mnemonic& m) {
  if (m.root() != "tcgen05") return nullptr;
  bool const pair = m.take("cta_group::2");
  m.ignore({"cta_group::1", "sync", "aligned", "shared::cta"});
  if (m.take("relinquish_alloc_permit")) return do_nothing;
  if (m.has("alloc") || m.has("dealloc")) {
    m.ignore({"b32"});
    return m.take("alloc") ? allocate : m.take("dealloc") ? free_columns : nullptr;
  }
  if (m.take("wait::ld")) return wait_loads;
  if (m.take("wait::st")) return wait_stores;
  if (m.has("ld") || m.has("st")) {
    std::string const shape = m.take_at(4), repeat = m.take_at(5);
    size_t const registers = repeat.starts_with("x") ? size_t(atoi(repeat.c_str() + 1)) : 0;
    if (shape != "32x32b" || !m.take("b32")) return nullptr;
    bool const is_load = m.take("ld");
    if (i.operands[is_load ? 0 : 1].parts.size() != registers) return nullptr;
    return is_load ? load_tmem : m.take("st") ? store_tmem : nullptr;
  }
  if (m.take("cp")) {
    i.count = m.take("128x256b") ? 128 : m.take("64x128b") && m.take("warpx2::02_13") ? 64 : 0;
    i.option = pair ? 2 : 1;
    return i.count ? copy_to_tmem : nullptr;
  }
  return nullptr;
}

}  // namespace emu
