// ldmatrix and stmatrix: 8 x 8 matrices of 16-bit elements between shared memory and fragments.
#include "families.h"
#include "memory.h"
#include "races.h"
#include "registers.h"

namespace emu {
namespace {

constexpr u32 kTransposed = 1;

// Lane l holds elements 2 (l % 4) and the next one of row l / 4; transposed: of column l / 4. Lanes 8 j .. 8 j + 7 name
// the rows of matrix j.
u32 row_of(Instruction const& i, int lane, int element) {
  return i.option & kTransposed ? lane % 4 * 2 + element : lane / 4;
}
u32 column_of(Instruction const& i, int lane, int element) {
  return i.option & kTransposed ? lane / 4 : lane % 4 * 2 + element;
}

void check_rows(u64 const* addresses, size_t matrices) {
  for (size_t l = 0; l < 8 * matrices; ++l)
    if (addresses[l] % 16 != 0) fault("a matrix row at the misaligned address %#lx", addresses[l]);
}

void load_matrix(Warp& w, Instruction const& i, u32 mask) {
  if (!converged(w, kAllLanes)) return;
  u64 addresses[kLanes];
  addresses_of(w, i.operands[1], addresses);
  auto const& parts = i.operands[0].parts;
  check_rows(addresses, parts.size());
  for (size_t j = 0; j < parts.size(); ++j) {
    u8 const* rows[8];
    for (int r = 0; r < 8; ++r) {
      u32 const address = u32(addresses[8 * j + size_t(r)]);
      rows[r] = shared_memory(*w.cta, address, 16);
      if (Races* const races_here = races(w)) races_here->access(w, mask, address, 16, Access::kRead);
    }
    Lanes<u32> result;
    for (int l = 0; l < kLanes; ++l) {
      u16 const low = load<u16>(rows[row_of(i, l, 0)] + 2 * column_of(i, l, 0));
      u16 const high = load<u16>(rows[row_of(i, l, 1)] + 2 * column_of(i, l, 1));
      result[l] = u32(high) << 16 | low;
    }
    write<u32>(w, parts[j], mask, result);
  }
}

void store_matrix(Warp& w, Instruction const& i, u32) {
  if (!converged(w, kAllLanes)) return;
  u64 addresses[kLanes];
  addresses_of(w, i.operands[0], addresses);
  auto const& parts = i.operands[1].parts;
  check_rows(addresses, parts.size());
  for (size_t j = 0; j < parts.size(); ++j) {
    Lanes<u32> scratch;
    u32 const* const values = read<u32>(w, parts[j], scratch);
    for (int l = 0; l < kLanes; ++l)
      for (int e = 0; e < 2; ++e) {
        u32 const address = u32(addresses[8 * j + row_of(i, l, e)]) + 2 * column_of(i, l, e);
        u16 const value = u16(values[l] >> 16 * e);
        std::memcpy(shared_memory(*w.cta, address, 2), &value, 2);
        note_write(w, l, address, 2);
        if (Races* const r = races(w)) r->access(w, 1u << l, address, 2, Access::kWrite);
      }
  }
}

}  // namespace

Execute decode_matrix_move(Instruction& i, Mnemonic& m) {
  if (m.root() != "ldmatrix" && m.root() != "stmatrix") return nullptr;
  std::string const type = m.type();
  m.take_type();
  bool const form = m.take("sync") && m.take("aligned") && m.take("m8n8") && type == "b16";
  if (!form || m.take_one_of({"x1", "x2", "x4"}).empty()) return nullptr;
  m.ignore({"shared", "shared::cta"});
  i.option = m.take("trans") ? kTransposed : 0;
  return m.root() == "ldmatrix" ? load_matrix : store_matrix;
}

}  // namespace emu
