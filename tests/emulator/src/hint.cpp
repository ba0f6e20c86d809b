// Instructions that change no result here, but may wait, or trap.
#include "families.h"
#include "machine.h"
#include "registers.h"

namespace emu {
namespace {

void trap(Warp&, Instruction const&, u32) { fault("the kernel stopped itself"); }

// Warps get no more registers than their CTA has started with: who asks for more waits until others give some back.
void set_registers(Warp& w, Instruction const& i, u32 mask) {
  if (!converged(w, kAllLanes)) return;
  bool const increases = i.option != 0;
  u32 const wanted = read_lane<u32>(w, i.operands[0], first_lane(mask)), has = w.lane_registers;
  if (increases ? wanted < has : wanted > has)
    fault("%u registers are not %s than %u", wanted, increases ? "more" : "less", has);
  Cta& cta = *w.cta;
  if (wanted > has + cta.free_registers) {
    w.group().wait = Group::kRegisters;
    return;
  }
  cta.free_registers += has - wanted;
  w.lane_registers = wanted;
}

}  // namespace

u32 first_registers(Kernel const& kernel, u32 threads) {
  constexpr u32 kOfSm = 65536, kMost = 256;
  u32 const ctas = std::max(kernel.min_ctas, 1u), most = kernel.max_threads ? kernel.max_threads : threads;
  return std::min(kOfSm / ctas / most / 8 * 8, kMost);
}

Execute decode_hint(Instruction& i, Mnemonic& m) {
  std::string const& root = m.root();
  if (root == "trap") return trap;
  if (root == "setmaxnreg" && m.take("sync") && m.take("aligned") && m.take("u32")) {
    std::string const which = m.take_one_of({"inc", "dec"});
    i.option = which == "inc";
    return !which.empty() ? set_registers : nullptr;
  }
  if (root == "nanosleep" && m.take("u32")) return do_nothing;
  // Launches run one after another.
  if (root == "griddepcontrol") return !m.take_one_of({"wait", "launch_dependents"}).empty() ? do_nothing : nullptr;
  bool const prefetch = root == "prefetch" || root == "prefetchu" || (root == "cp" && m.has("prefetch"));
  if (prefetch || root == "createpolicy" || root == "applypriority" || root == "discard") {
    i.operands.clear();
    m.ignore({"async", "bulk", "prefetch", "tensor", "1d", "2d", "3d", "4d", "5d", "tile", "tile::gather4", "global"});
    m.ignore({"L1", "L2", "L2::evict_last", "L2::evict_normal", "L2::evict_first", "tensormap", "param", "fractional"});
    m.ignore({"L2::cache_hint", "b64"});
    return do_nothing;
  }
  return nullptr;
}

}  // namespace emu
