// What orders accesses: barriers, mbarriers, and the completion of asynchronous work.
#include "races.h"

namespace emu {

void Races::begin() {
  warps_per_cta_ = u32(cluster_.ctas[0].warps.size());
  warps_.clear();
  agents_.clear();
  mbarriers_.clear();
  named_.assign(cluster_.ctas.size() * kNamedBarriers, {});
  cluster_barrier_ = {};
  visits_.assign(cluster_.ctas.size(), {});
  words_.resize(cluster_.ctas.size());
  more_.resize(cluster_.ctas.size());
  used_.resize(cluster_.ctas.size());
  tmem_.resize(cluster_.ctas.size());
  for (Cta const& cta : cluster_.ctas) {
    for (Warp const& w : cta.warps) {
      u16 const agent = new_agent(kThreads, cta.rank, u32(w.id));
      warps_.push_back({.agent = agent, .groups = {{.lanes = kAllLanes, .clock = {}}}});
    }
    size_t const words = cta.shared.size() / kWord + 1;
    clear(cta.rank, words);
  }
}

void Races::clear(u32 rank, size_t words) {
  std::vector<Word>& of_cta = words_[rank];
  std::vector<u8>& used = used_[rank];
  if (of_cta.size() != words) {
    of_cta.assign(words, {});
    more_[rank].resize(words);
    used.assign(words / kBlock + 1, 0);
    return;
  }
  for (size_t n = 0; n < used.size(); ++n) {
    if (!used[n]) continue;
    std::fill_n(of_cta.begin() + i64(n * kBlock), std::min<size_t>(kBlock, words - n * kBlock), Word{});
    used[n] = 0;
  }
}

u16 Races::new_agent(Kind kind, u32 cta, u32 number) {
  if (agents_.size() >= kNoAgent) fault("the happens-before checker has no room for so many agents");
  agents_.push_back({kind, cta, number});
  return u16(agents_.size() - 1);
}

Races::Operations& Races::operations(Warp const& w, Kind kind) {
  WarpState& s = state(w);
  Operations& o = kind == kCopies ? s.copies : kind == kBulkStores ? s.bulk_stores : s.products;
  if (o.agent != kNoAgent) return o;
  if (kind != kProducts) {
    o.agent = new_agent(kind, w.cta->rank, u32(w.id));
  } else {
    u16 const agent = new_agent(kind, w.cta->rank, u32(w.id) / 4);
    for (int n = 0; n < 4; ++n) state(w.cta->warps[size_t(w.id / 4 * 4 + n)]).products.agent = agent;
  }
  return o;
}

Races::Mbarrier& Races::mbarrier_at(u32 address) {
  Mbarrier& m = mbarriers_[address];
  if (m.agent == kNoAgent) m.agent = new_agent(kTransactions, address >> 24, address);
  return m;
}

// --- barriers

// What an agent has done for each of the lanes; `all`: there are no others.
void Races::add_done(u16 agent, u32 const (&done_of)[kLanes], u32 lanes, bool all, Clock& into) {
  if (agent == kNoAgent) return;
  for (u32 left = lanes; left != 0;) {
    u32 const done = done_of[first_lane(left)];
    u32 same = 0;
    for_lanes(left, [&](int l) { same |= u32(done_of[l] == done) << l; });
    left &= ~same;
    into.add(agent, all && same == lanes ? Known{done, 0, 0} : Known{0, done, same});
  }
}

void Races::release(Warp& w, u32 lanes, Clock& into) {
  WarpState& s = state(w);
  for (Knowledge const& k : s.groups)
    if (k.lanes & lanes) into.join(k.clock);
  bool const all = (w.alive & ~lanes) == 0;
  into.add(s.agent, all ? Known{s.time + 1, 0, 0} : Known{0, s.time + 1, lanes});
  for (Operations const* o : {&s.copies, &s.bulk_stores}) add_done(o->agent, o->done, lanes, all, into);
  for (TmemMoves const* moves : {&s.loads, &s.stores}) add_done(moves->agent, moves->fenced, lanes, all, into);
  if (s.tensor.agent != kNoAgent) add_done(s.tensor.agent + 1, s.tensor.fenced, lanes, all, into);
  ++s.time;
}

void Races::acquire(Warp& w, u32 lanes, Clock const& from) {
  std::vector<Knowledge>& groups = state(w).groups;
  for (size_t n = 0, end = groups.size(); n < end; ++n) {
    u32 const some = groups[n].lanes & lanes;
    if (some == 0) continue;
    if ((groups[n].lanes & w.alive & ~lanes) == 0) {
      groups[n].clock.join(from);
      continue;
    }
    groups[n].lanes &= ~lanes;
    groups.push_back({some, groups[n].clock});
    groups.back().clock.join(from);
  }
}

void Races::synchronise_warp(Warp& w, u32 lanes) {
  Knowledge together{lanes | ~w.alive, {}};
  release(w, lanes & w.alive, together.clock);
  std::vector<Knowledge>& groups = state(w).groups;
  for (Knowledge& k : groups) k.lanes &= ~together.lanes;
  std::erase_if(groups, [](Knowledge const& k) { return k.lanes == 0; });
  groups.push_back(std::move(together));
}

// Of each lane: what is complete to it so far, its own accesses and copies among that.
void Races::fence_proxies(Warp& w, u32 lanes) {
  WarpState& s = state(w);
  acquire(w, lanes, {});  // the lanes that fence become groups of their own
  for (Knowledge& k : s.groups) {
    u32 const some = k.lanes & lanes;
    if (some == 0) continue;
    Clock before = k.clock;
    bool const all = (w.alive & ~some) == 0;
    before.add(s.agent, all ? Known{s.time + 1, 0, 0} : Known{0, s.time + 1, some});
    add_done(s.copies.agent, s.copies.done, some, all, before);
    k.clock.fence(before);
  }
  ++s.time;
}

// --- mbarriers

namespace {

// f(lanes, mbarrier) for the lanes that name the same one.
template <class F>
void for_each_mbarrier(u32 lanes, u64 const* mbarriers, F const& f) {
  while (lanes != 0) {
    u32 const mbarrier = u32(mbarriers[first_lane(lanes)]);
    u32 same = 0;
    for_lanes(lanes, [&](int l) { same |= u32(u32(mbarriers[l]) == mbarrier) << l; });
    lanes &= ~same;
    f(same, mbarrier);
  }
}

}  // namespace

void Races::arrive(Warp& w, u32 lanes, u64 const* mbarriers) {
  for_each_mbarrier(lanes, mbarriers, [&](u32 same, u32 m) { release(w, same, mbarrier_at(m).arrived); });
}

void Races::pass(Warp& w, u32 lanes, u64 const* mbarriers) {
  for_each_mbarrier(lanes, mbarriers, [&](u32 same, u32 address) {
    Mbarrier& m = mbarrier_at(address);
    m.waited_for = m.phase;
    acquire(w, same, m.passed);
  });
}

// The thread's own accesses are no part of what arrives.
void Races::arrive_when_copied(Warp& w, u32 lanes, u64 const* mbarriers) {
  Operations const& copies = operations(w, kCopies);
  for_each_mbarrier(lanes, mbarriers, [&](u32 same, u32 m) {
    bool const all = (w.alive & ~same) == 0;
    mbarrier_at(m).arrived.add(copies.agent, all ? Known{copies.issued, 0, 0} : Known{0, copies.issued, same});
  });
}

void Races::commit_tensor(Warp& w, int lane, u32 mbarrier) {
  Mbarrier& m = mbarrier_at(mbarrier);
  m.committed = m.phase + 1;
  TensorWork const& work = state(w).tensor;
  for (auto const& [l, known] : work.before) {
    if (l != lane) continue;
    m.arrived.join(known);
    m.arrived.add(work.agent, {0, work.issued, 1u << lane});
    m.arrived.add(work.agent + 1, {0, work.issued, 1u << lane});
  }
}

void Races::end_phase(u32 mbarrier) {
  Mbarrier& m = mbarrier_at(mbarrier);
  m.arrived.add(m.agent, {++m.phase, 0, 0});
  m.passed.join(m.arrived);
  m.arrived = {};
}

void Races::end_cluster_phase() {
  cluster_barrier_.passed.join(cluster_barrier_.arrived);
  cluster_barrier_.arrived = {};
}

// --- commit groups

void Races::commit(Warp& w, u32 lanes, Kind kind) {
  Operations& o = operations(w, kind);
  for_lanes(lanes, [&](int l) { o.committed[l].push_back(o.issued); });
}

void Races::wait(Warp& w, u32 lanes, Kind kind, u32 newest_left) {
  Operations& o = operations(w, kind);
  for_lanes(lanes, [&](int l) {
    std::vector<u32>& groups = o.committed[l];
    if (groups.size() <= newest_left) return;
    o.done[l] = groups[groups.size() - 1 - newest_left];
    groups.erase(groups.begin(), groups.end() - newest_left);
  });
  if (kind == kProducts) learn_products(w);
}

void Races::wait_all(Warp& w, u32 lanes, Kind kind) {
  Operations& o = operations(w, kind);
  for_lanes(lanes, [&](int l) {
    o.done[l] = o.issued;
    o.committed[l].clear();
  });
}

// A warp waits for its share of the products; its groups are counted at lane 0.
void Races::learn_products(Warp& w) {
  WarpState& s = state(w);
  for (Knowledge& k : s.groups) k.clock.add(s.products.agent, {0, s.products.done[0], share(w)});
}

}  // namespace emu
