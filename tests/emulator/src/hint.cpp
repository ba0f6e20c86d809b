// Instructions that change no result here, and trap.
#include "families.h"
#include "machine.h"

namespace emu {
namespace {

void trap(Warp&, Instruction const&, u32) { fault("the kernel stopped itself"); }

}  // namespace

Execute decode_hint(Instruction& i, Mnemonic& m) {
  std::string const& root = m.root();
  if (root == "trap") return trap;
  // Registers are not modelled.
  if (root == "setmaxnreg" && m.take("sync") && m.take("aligned") && m.take("u32"))
    return !m.take_one_of({"inc", "dec"}).empty() ? do_nothing : nullptr;
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
