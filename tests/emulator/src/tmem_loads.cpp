#include "tmem_loads.h"

#include <algorithm>

#include "wgmma.h"

namespace emu {

void note_tmem_load(Warp& w, Instruction const& load) {
  if (w.loading.empty()) w.loading.resize(w.cta->cluster->launch->kernel->register_bytes / kRegisterUnit + 1);
  for (Operand const& o : load.operands[0].parts)
    if (o.kind == Operand::kRegister) w.loading[o.offset / kRegisterUnit] = 1;
}

void check_loading(Warp& w, Instruction const& i) {
  auto const is_loading = [&](auto const& self, Operand const& o) -> bool {
    if (o.kind == Operand::kRegister) return w.loading[o.offset / kRegisterUnit];
    return std::any_of(o.parts.begin(), o.parts.end(), [&](Operand const& part) { return self(self, part); });
  };
  if (i.operands.empty()) return;
  // Results come first, and are not read; other instructions begin with an address.
  bool const has_result = i.operands[0].kind != Operand::kMemory;
  bool reads = false;
  for (size_t n = has_result; n < i.operands.size(); ++n) reads = reads || is_loading(is_loading, i.operands[n]);
  // The compiler may move registers before it waits.
  if (reads && !i.is_move) fault("a register is read that tcgen05.ld has not loaded yet: no tcgen05.wait::ld since");
  if (!has_result) return;
  auto const mark = [&](Operand const& o) {
    if (o.kind == Operand::kRegister) w.loading[o.offset / kRegisterUnit] = reads;
  };
  mark(i.operands[0]);
  for (Operand const& part : i.operands[0].parts) mark(part);
}

}  // namespace emu
