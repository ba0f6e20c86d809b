// Which registers could be read before anything has written them: those that some stretch of code, between two places
// that branches lead to, reads before it writes them. A CTA must find poison in them. The others are its temporaries,
// most of a kernel's registers, which may keep what the CTA before has left.
#include "ptx.h"
#include "wgmma.h"

namespace emu {
namespace {

size_t unit(u32 offset) { return offset / kRegisterUnit; }

template <class F>
void for_each_register(Operand const& o, F const& f) {
  if (o.kind == Operand::kRegister) f(unit(o.offset));
  for (Operand const& part : o.parts) for_each_register(part, f);
}

// How many operands at the beginning are written.
size_t result_count(Instruction const& i) {
  if (i.operands.empty() || i.operands[0].kind == Operand::kMemory) return 0;
  return i.has_result && i.operands[1].kind == Operand::kRegister ? 2 : 1;  // (atom's second is an address)
}

}  // namespace

void find_exposed_results(Kernel& kernel) {
  std::vector<bool> is_target(kernel.code.size());
  for (Instruction const& i : kernel.code)
    if (i.flow == Instruction::kBranch) is_target[size_t(i.target)] = true;
  size_t const units = unit(kernel.register_bytes) + 1;
  std::vector<u32> written(units);  // the stretch in which they last were
  std::vector<bool> exposed(units);
  u32 stretch = 1;
  auto const read = [&](size_t n) {
    if (written[n] != stretch) exposed[n] = true;
  };
  for (size_t n = 0; n < kernel.code.size(); ++n) {
    Instruction const& i = kernel.code[n];
    stretch += is_target[n];
    size_t const results = result_count(i);
    bool const predicated = i.predicate >= 0;
    if (predicated) read(unit(u32(i.predicate)));
    for (size_t o = i.reads_first ? 0 : results; o < i.operands.size(); ++o) for_each_register(i.operands[o], read);
    if (predicated || i.reads_first) continue;
    for (size_t o = 0; o < results; ++o) for_each_register(i.operands[o], [&](size_t r) { written[r] = stretch; });
  }
  for (Instruction& i : kernel.code)
    for (size_t o = 0; o < result_count(i); ++o)
      for_each_register(i.operands[o], [&](size_t r) { i.result_exposed |= exposed[r]; });
}

}  // namespace emu
