// From an instruction's name to what runs it; which instructions are synchronisation.
#include <algorithm>
#include <cstdlib>

#include "families.h"
#include "registers.h"

namespace emu {

Mnemonic::Mnemonic(std::string const& opcode) : parts_(1) {
  for (size_t i = 0; i < opcode.size(); ++i) {
    if (opcode[i] == '.')
      parts_.emplace_back();
    else
      parts_.back() += opcode[i];
  }
  taken_.resize(parts_.size());
  taken_[0] = true;
}

bool Mnemonic::has(char const* part) const { return std::find(parts_.begin() + 1, parts_.end(), part) != parts_.end(); }

bool Mnemonic::take(char const* part) {
  auto const found = std::find(parts_.begin() + 1, parts_.end(), part);
  if (found == parts_.end()) return false;
  taken_[found - parts_.begin()] = true;
  return true;
}

std::string Mnemonic::take_one_of(std::initializer_list<char const*> parts) {
  for (char const* part : parts)
    if (take(part)) return part;
  return "";
}

std::string Mnemonic::take_at(size_t place) {
  if (place >= parts_.size()) return "";
  taken_[place] = true;
  return parts_[place];
}

void Mnemonic::ignore(std::initializer_list<char const*> parts) {
  for (char const* part : parts) take(part);
}

bool Mnemonic::finished() const { return std::find(taken_.begin(), taken_.end(), false) == taken_.end(); }

u32 type_bytes(std::string const& type) {
  size_t i = !type.empty() && type[0] == '.';
  if (type.compare(i, std::string::npos, "pred") == 0) return 1;
  size_t const digits = type.find_first_of("0123456789", i);
  if (digits == std::string::npos) return 0;
  std::string const kind = type.substr(i, digits - i);
  if (kind != "b" && kind != "u" && kind != "s" && kind != "f" && kind != "bf" && kind != "tf") return 0;
  char* end;
  u32 const bits = u32(strtoul(type.c_str() + digits, &end, 10));
  return bits / 8 * (*end == 'x' ? u32(atoi(end + 1)) : 1);
}

void do_nothing(Warp&, Instruction const&, u32) {}

namespace {

void unknown(Warp&, Instruction const&, u32) { fault("an instruction that the emulator does not know"); }

void answer_true(Warp& w, Instruction const& i, u32 mask) {
  Lanes<u8> ones;
  std::fill_n(ones, kLanes, u8(1));
  write<u8>(w, i.operands[0], mask, ones);
}

// What runs in place of a synchronisation instruction that mutate.py removes; nullptr for all others. Synchronisation
// is what orders, and moves or computes nothing: barriers, fences, the arrivals and waits of mbarriers and of commit
// groups. (Without mbarrier.init nothing works, and an election or a shuffle gives a result: those are none.)
Execute without(Mnemonic const& m) {
  std::string const& root = m.root();
  auto const has_any = [&](std::initializer_list<char const*> parts) {
    return std::any_of(parts.begin(), parts.end(), [&](char const* part) { return m.has(part); });
  };
  if (root == "bar" || root == "barrier" || root == "fence" || root == "membar" || root == "griddepcontrol")
    return do_nothing;
  if (root == "mbarrier") {
    if (has_any({"try_wait", "test_wait"})) return answer_true;
    return has_any({"arrive", "expect_tx", "complete_tx"}) ? do_nothing : nullptr;
  }
  if (root == "cp") return has_any({"commit_group", "wait_group", "wait_all", "arrive"}) ? do_nothing : nullptr;
  if (root == "wgmma") return has_any({"fence", "commit_group", "wait_group"}) ? do_nothing : nullptr;
  if (root != "tcgen05") return nullptr;
  bool const orders =
      has_any({"wait::ld", "wait::st", "fence::before_thread_sync", "fence::after_thread_sync", "commit"});
  return orders ? do_nothing : nullptr;
}

}  // namespace

Execute unknown_instruction() { return unknown; }

void decode(Instruction& i, Mnemonic mnemonic) {
  static constexpr Execute (*kFamilies[])(Instruction&, Mnemonic&) = {
      decode_integer,    decode_bits,        decode_float,   decode_select,  decode_convert,
      decode_load_store, decode_atomic,      decode_warp,    decode_barrier, decode_mbarrier,
      decode_cluster,    decode_cp_async,    decode_bulk,    decode_tma,     decode_wgmma,
      decode_tmem,       decode_matrix_move, decode_tcgen05, decode_hint,
  };
  i.without_it = without(mnemonic);
  std::string const& root = mnemonic.root();
  i.is_move = root == "mov";
  i.reads_first = root == "wgmma" || root == "bar" || root == "barrier" || root == "nanosleep" ||
                  (root == "tcgen05" && mnemonic.has("dealloc"));
  for (auto const family : kFamilies) {
    Mnemonic m = mnemonic;
    i.execute = family(i, m);
    if (i.execute != nullptr && m.finished()) return;
  }
  i.execute = unknown;
}

}  // namespace emu
