// Special registers.
#include "registers.h"

namespace emu {
namespace {

struct SpecialRegister {
  char const* name;
  u64 (*value)(Warp const&, int lane);
};

Launch const& launch(Warp const& w) { return *w.cta->cluster->launch; }
u32 thread(Warp const& w, int lane) { return u32(w.id * kLanes + lane); }
u32 shared_bytes(Warp const& w) { return w.cta->dynamic_offset + launch(w).dynamic_shared; }
u64 cta_number(Warp const& w) {
  Launch const& l = launch(w);
  return w.cta->id[0] + u64(l.grid[0]) * (w.cta->id[1] + u64(l.grid[1]) * w.cta->id[2]);
}
template <int d>
u32 cluster_id(Warp const& w) {
  return w.cta->id[d] / launch(w).cluster[d];
}

// A clock that counts the warp's instructions.
u64 clock_of(Warp const& w, int) { return w.executed; }

SpecialRegister const kRegisters[] = {
    {"%tid.x", [](Warp const& w, int l) -> u64 { return thread(w, l) % launch(w).block[0]; }},
    {"%tid.y", [](Warp const& w, int l) -> u64 { return thread(w, l) / launch(w).block[0] % launch(w).block[1]; }},
    {"%tid.z", [](Warp const& w, int l) -> u64 { return thread(w, l) / launch(w).block[0] / launch(w).block[1]; }},
    {"%ntid.x", [](Warp const& w, int) -> u64 { return launch(w).block[0]; }},
    {"%ntid.y", [](Warp const& w, int) -> u64 { return launch(w).block[1]; }},
    {"%ntid.z", [](Warp const& w, int) -> u64 { return launch(w).block[2]; }},
    {"%ctaid.x", [](Warp const& w, int) -> u64 { return w.cta->id[0]; }},
    {"%ctaid.y", [](Warp const& w, int) -> u64 { return w.cta->id[1]; }},
    {"%ctaid.z", [](Warp const& w, int) -> u64 { return w.cta->id[2]; }},
    {"%nctaid.x", [](Warp const& w, int) -> u64 { return launch(w).grid[0]; }},
    {"%nctaid.y", [](Warp const& w, int) -> u64 { return launch(w).grid[1]; }},
    {"%nctaid.z", [](Warp const& w, int) -> u64 { return launch(w).grid[2]; }},
    {"%laneid", [](Warp const&, int l) -> u64 { return u64(l); }},
    {"%warpid", [](Warp const& w, int) -> u64 { return u64(w.id); }},
    {"%nwarpid", [](Warp const& w, int) -> u64 { return w.cta->warps.size(); }},
    {"%smid", [](Warp const& w, int) -> u64 { return cta_number(w) % launch(w).sms; }},
    {"%nsmid", [](Warp const& w, int) -> u64 { return launch(w).sms; }},
    {"%clock", clock_of},
    {"%clock64", clock_of},
    {"%globaltimer", clock_of},
    {"%lanemask_eq", [](Warp const&, int l) -> u64 { return 1u << l; }},
    {"%lanemask_lt", [](Warp const&, int l) -> u64 { return (1u << l) - 1; }},
    {"%lanemask_le", [](Warp const&, int l) -> u64 { return kAllLanes >> (31 - l); }},
    {"%lanemask_gt", [](Warp const&, int l) -> u64 { return l == 31 ? 0 : kAllLanes << (l + 1); }},
    {"%lanemask_ge", [](Warp const&, int l) -> u64 { return kAllLanes << l; }},
    {"%dynamic_smem_size", [](Warp const& w, int) -> u64 { return launch(w).dynamic_shared; }},
    {"%total_smem_size", [](Warp const& w, int) -> u64 { return shared_bytes(w); }},
    {"%aggr_smem_size", [](Warp const& w, int) -> u64 { return shared_bytes(w); }},
    {"%cluster_ctarank", [](Warp const& w, int) -> u64 { return w.cta->rank; }},
    {"%cluster_nctarank", [](Warp const& w, int) -> u64 { return w.cta->cluster->ctas.size(); }},
    {"%cluster_ctaid.x", [](Warp const& w, int) -> u64 { return w.cta->in_cluster[0]; }},
    {"%cluster_ctaid.y", [](Warp const& w, int) -> u64 { return w.cta->in_cluster[1]; }},
    {"%cluster_ctaid.z", [](Warp const& w, int) -> u64 { return w.cta->in_cluster[2]; }},
    {"%cluster_nctaid.x", [](Warp const& w, int) -> u64 { return launch(w).cluster[0]; }},
    {"%cluster_nctaid.y", [](Warp const& w, int) -> u64 { return launch(w).cluster[1]; }},
    {"%cluster_nctaid.z", [](Warp const& w, int) -> u64 { return launch(w).cluster[2]; }},
    {"%clusterid.x", [](Warp const& w, int) -> u64 { return cluster_id<0>(w); }},
    {"%clusterid.y", [](Warp const& w, int) -> u64 { return cluster_id<1>(w); }},
    {"%clusterid.z", [](Warp const& w, int) -> u64 { return cluster_id<2>(w); }},
    {"%nclusterid.x", [](Warp const& w, int) -> u64 { return launch(w).grid[0] / launch(w).cluster[0]; }},
    {"%nclusterid.y", [](Warp const& w, int) -> u64 { return launch(w).grid[1] / launch(w).cluster[1]; }},
    {"%nclusterid.z", [](Warp const& w, int) -> u64 { return launch(w).grid[2] / launch(w).cluster[2]; }},
    {"%is_explicit_cluster", [](Warp const& w, int) -> u64 { return w.cta->cluster->ctas.size() > 1; }},
    {"%envreg1", [](Warp const&, int) -> u64 { return 0; }},
    {"%envreg2", [](Warp const&, int) -> u64 { return 0; }},
};

}  // namespace

int special_register(std::string const& name) {
  for (size_t n = 0; n < std::size(kRegisters); ++n)
    if (name == kRegisters[n].name) return int(n);
  return -1;
}

u64 special_value(Warp const& w, int lane, int number) { return kRegisters[number].value(w, lane); }

}  // namespace emu
