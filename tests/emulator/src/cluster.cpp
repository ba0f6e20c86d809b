// Barriers between the CTAs of a cluster, and addresses in each other's shared memory.
#include "cluster.h"

#include "families.h"
#include "memory.h"
#include "races.h"
#include "registers.h"

namespace emu {

void advance_cluster_barrier(Cluster& cluster) {
  bool any = false;
  for (Cta& cta : cluster.ctas)
    for (Warp& w : cta.warps) {
      if (w.alive && !w.at_cluster_barrier) return;
      any = any || w.at_cluster_barrier;
    }
  if (!any) return;
  ++cluster.phase;
  if (cluster.races) cluster.races->end_cluster_phase();
  for (Cta& cta : cluster.ctas)
    for (Warp& w : cta.warps) w.at_cluster_barrier = false;
}

namespace {

void arrive(Warp& w, Instruction const&, u32) {
  if (!converged(w, kAllLanes)) return;
  Cluster& cluster = *w.cta->cluster;
  if (w.at_cluster_barrier) fault("a second arrival at the cluster's barrier");
  if (Races* const r = races(w)) r->arrive_at_cluster(w, w.alive);
  w.cluster_phase = cluster.phase;
  w.at_cluster_barrier = true;
  advance_cluster_barrier(cluster);
}

void wait(Warp& w, Instruction const&, u32) {
  if (w.cta->cluster->phase == w.cluster_phase) {
    w.group().wait = Group::kCluster;
    return;
  }
  see_writes(w);
  if (Races* const r = races(w)) r->pass_cluster(w);
}

// The address, of this CTA's shared memory, in that of the CTA with the given rank.
u32 mapped(u32 address, u32 rank) { return in_cta(rank, address); }

template <class T>
void map_address(Warp& w, Instruction const& i, u32 mask) {
  Lanes<T> scratch, result;
  Lanes<u32> ranks;
  T const* const address = read<T>(w, i.operands[1], scratch);
  u32 const* const rank = read<u32>(w, i.operands[2], ranks);
  for (int l = 0; l < kLanes; ++l) {
    result[l] = mapped(u32(address[l]), rank[l]);
    if constexpr (sizeof(T) == 8) result[l] |= kSharedBit;
  }
  write<T>(w, i.operands[0], mask, result);
}

constexpr auto rank_of = [](u32 address) { return address >> 24; };

}  // namespace

Execute decode_cluster(Instruction&, Mnemonic& m) {
  if (m.root() == "barrier" && m.take("cluster")) {
    m.ignore({"aligned", "relaxed", "release", "acquire"});
    return m.take("arrive") ? arrive : m.take("wait") ? wait : nullptr;
  }
  std::string const type = m.type();
  m.take_type();
  if (m.root() == "mapa") {
    bool const window = m.take("shared::cluster");
    if (window && type == "u32") return map_address<u32>;
    return !window && type == "u64" ? map_address<u64> : nullptr;
  }
  if (m.root() == "getctarank" && type == "u32") {
    m.take("shared::cluster");
    return unary<u32, u32, rank_of>;
  }
  return nullptr;
}

}  // namespace emu
