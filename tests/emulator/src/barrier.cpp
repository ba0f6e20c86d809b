// Barriers of a CTA, and fences. Execution is sequentially consistent, so of the fences only proxy fences do anything.
#include "families.h"
#include "memory.h"
#include "races.h"
#include "registers.h"

namespace emu {
namespace {

void release(Cta& cta, u32 number, Group const& last) {
  cta.named[number] = {};
  Races* const races = cta.cluster->races.get();
  for (Warp& w : cta.warps)
    for (Group& g : w.groups)
      if (g.wait == Group::kNamedBarrier && g.address == number) {
        g.wait = Group::kNone;
        if (&g != &last) ++g.pc;  // the last one's instruction is still being run
        see_writes(w);
        if (races) races->acquire(w, g.mask, races->named_barrier(cta, number));
      }
  if (races) races->named_barrier(cta, number) = {};
}

constexpr u32 kArriveOnly = 1, kPerThread = 2;

// number[, threads]. The aligned form counts whole warps, the other one threads.
void barrier(Warp& w, Instruction const& i, u32 mask) {
  bool const per_thread = i.option & kPerThread;
  if (!per_thread && !converged(w, kAllLanes)) return;
  Cta& cta = *w.cta;
  u32 const number = read_lane<u32>(w, i.operands[0], first_lane(mask));
  u32 const whole_cta = u32(cta.threads + kLanes - 1) / kLanes * kLanes;
  u32 const expected = i.operands.size() > 1 ? read_lane<u32>(w, i.operands[1], first_lane(mask)) : whole_cta;
  if (number >= std::size(cta.named)) fault("there is no barrier %u", number);
  if (expected % kLanes != 0) fault("barrier %u for %u threads, which is not a number of warps", number, expected);
  NamedBarrier& b = cta.named[number];
  if (b.expected != 0 && b.expected != expected)
    fault("barrier %u is for %u threads here and for %u elsewhere", number, expected, b.expected);
  b.expected = expected;
  if (!(i.option & (kArriveOnly | kPerThread))) {
    // Hardware counts warps wherever they are. compute-sanitizer's synccheck wants those that wait at an aligned
    // barrier to be at one place in the program.
    if (b.aligned != nullptr && b.aligned != &i)
      fault("barrier %u is an aligned one, at which some threads wait at line %u and others here", number,
            b.aligned->line);
    b.aligned = &i;
  }
  b.arrived += per_thread ? u32(std::popcount(mask)) : kLanes;
  if (b.arrived > expected) fault("barrier %u: %u threads arrive of %u", number, b.arrived, expected);
  if (Races* const r = races(w)) r->release(w, mask, r->named_barrier(cta, number));
  Group& group = w.group();
  if (!(i.option & kArriveOnly)) {
    group.wait = Group::kNamedBarrier;
    group.address = number;
  }
  if (b.arrived == expected) release(cta, number, group);
}

}  // namespace

Execute decode_barrier(Instruction& i, Mnemonic& m) {
  if (m.root() == "membar" || (m.root() == "fence" && !m.has("proxy"))) {
    m.ignore({"sc", "acq_rel", "acquire", "release", "cta", "cluster", "gpu", "sys", "gl", "mbarrier_init"});
    return do_nothing;
  }
  if (m.root() == "fence" && m.take("proxy")) {
    if (!m.take("async")) return nullptr;
    if (m.take("global")) return do_nothing;
    m.ignore({"shared::cta", "shared::cluster"});
    return proxy_fence;
  }
  if ((m.root() != "bar" && m.root() != "barrier") || m.has("warp") || m.has("cluster")) return nullptr;
  bool const aligned = m.take("aligned") || m.root() == "bar";
  m.ignore({"cta"});
  bool const arrive = m.take("arrive");
  if (!arrive && !m.take("sync")) return nullptr;
  i.option = (arrive ? kArriveOnly : 0) | (aligned ? 0 : kPerThread);
  return barrier;
}

}  // namespace emu
