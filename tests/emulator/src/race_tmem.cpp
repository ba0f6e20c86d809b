// Order in tensor memory, as PTX has it for tcgen05: two accesses to a cell, one of them a write, are a race unless
//
//   one's own loads, stores   have been waited for (tcgen05.wait::ld, ::st) before the warp's next access
//   one's own tensor work     has completed (tcgen05.commit, and the wait for its mbarrier), and then a
//                             tcgen05.fence::after_thread_sync has come; none of this in a pipeline: copies before
//                             products, and products before products of one shape on the same sums
//   another thread's          loads and stores have been waited for, tensor work completed; then it has run
//                             tcgen05.fence::before_thread_sync (which a commit has in it for what it tracks), a
//                             barrier has told this thread, and this thread has run ::after_thread_sync. In a pipeline
//                             work need not be complete.
//   an allocation             is ordered like an access to shared memory; but others need the fence after it
//
// To free columns needs no fence of the thread that does: tcgen05.dealloc is not asynchronous.
//
// Loads and stores are agents of their own, of each warp. What a lane's fence::before_thread_sync says is complete goes
// into the clocks of barriers that the lane comes to; a fence::after_thread_sync keeps what the lane knows then, and
// accesses look at that. A quarter of the lanes is a cell here: all instructions take them whole.
#include "races.h"
#include "report.h"

namespace emu {

Races::TmemMoves& Races::tmem_moves(Warp const& w, Kind kind) {
  TmemMoves& moves = kind == kTmemLoads ? state(w).loads : state(w).stores;
  if (moves.agent == kNoAgent) moves.agent = new_agent(kind, w.cta->rank, u32(w.id));
  return moves;
}

bool Races::tmem_ordered(WarpState const& w, TmemStamp const& before, TmemStamp const& now,
                         std::vector<TmemIssuer> const& issuers) const {
  if (before.agent == w.agent) return true;
  for (TmemMoves const* moves : {&w.loads, &w.stores})
    if (before.agent == moves->agent) return before.time < moves->done;
  bool const in_order = before.pipeline.comes_before(now.pipeline);
  if (in_order && before.agent == now.agent && before.lanes == now.lanes) return true;
  // Lane n of a warp reaches lane n of its quarter.
  auto const moves = [&](u16 agent) { return agents_[agent].kind == kTmemLoads || agents_[agent].kind == kTmemStores; };
  bool const lane_by_lane = moves(before.agent) && moves(now.agent);
  return std::all_of(issuers.begin(), issuers.end(), [&](TmemIssuer const& issuer) {
    u32 const who = lane_by_lane ? before.lanes & issuer.lanes : before.lanes;
    return who == 0 || (issuer.known != nullptr && issuer.known->covers(before.agent + in_order, who, before.time));
  });
}

void Races::access_tmem(WarpState const& w, TmemPart const& part, TmemStamp const& stamp) {
  std::vector<TmemCell>& cells = tmem_[part.cta->rank];
  if (part.first + part.count > part.cta->tmem_allocated) return;  // a fault comes
  TmemStamp checked[1 + kReaders] = {};  // neighbouring columns have often been accessed together
  auto const check = [&](u32 quarter, u32 column, TmemStamp const& before, TmemStamp& last) {
    if (before == last) return;
    if (!tmem_ordered(w, before, stamp, tmem_issuers_)) tmem_race(w, quarter, column, before, stamp);
    last = before;
  };
  for (u32 quarter = 0; quarter < kTmemQuarters; ++quarter) {
    if (part.quarter >= 0 && u32(part.quarter) != quarter) continue;
    for (u32 column = part.first; column < part.first + part.count; ++column) {
      TmemCell& cell = cells[quarter * kTmemColumns + column];
      check(quarter, column, cell.write, checked[0]);
      if (stamp.writes) {
        for (u32 n = 0; n < cell.reader_count; ++n) check(quarter, column, cell.readers[n], checked[1 + n]);
        cell.write = stamp;
        cell.reader_count = 0;
        continue;
      }
      // Who knows of a thread's access knows of those before it.
      TmemStamp* const end = cell.readers + cell.reader_count;
      TmemStamp* const place = std::find_if(cell.readers, end, [&](TmemStamp const& r) {
        return r.agent == stamp.agent && r.lanes == stamp.lanes && r.pipeline == stamp.pipeline;
      });
      if (place == end && cell.reader_count < kReaders) ++cell.reader_count;
      (place == cell.readers + kReaders ? cell.readers[stamp.time % kReaders] : *place) = stamp;
    }
  }
}

void Races::tmem_race(WarpState const& w, u32 quarter, u32 column, TmemStamp const& before,
                      TmemStamp const& now) const {
  Agent const& agent = agents_[before.agent];
  WarpState const& other = warps_[agent.cta * warps_per_cta_ + agent.number];
  bool const load = agent.kind == kTmemLoads, moves = load || agent.kind == kTmemStores;
  Clock known;
  for (Knowledge const& k : w.groups) known.join(k.clock);
  char const* reason = "nothing orders";
  if (moves && before.time >= (load ? other.loads : other.stores).done)
    reason = load ? "no tcgen05.wait::ld follows" : "no tcgen05.wait::st follows";
  else if (known.covers(before.agent, before.lanes, before.time))
    reason = "no tcgen05.fence::after_thread_sync orders";
  else if (moves)
    reason = "no barrier with a tcgen05.fence::before_thread_sync before it orders";
  fault("race on tensor memory at lanes %u to %u, column %u: %s\n    %s\n      %s\n    before %s\n      %s",
        quarter * kLanes, quarter * kLanes + kLanes - 1, column, reason, describe(before).c_str(),
        place_in_code(before.pc).c_str(), describe(now).c_str(), place_in_code(now.pc).c_str());
}

std::string Races::describe(TmemStamp const& s) const {
  Agent const& agent = agents_[s.agent];
  std::string const cta = cluster_.ctas.size() > 1 ? " of CTA " + std::to_string(agent.cta) : "";
  std::string const warp = "warp " + std::to_string(agent.number) + cta;
  switch (agent.kind) {
    case kTmemLoads: return "a load by " + warp;
    case kTmemStores: return "a store by " + warp;
    case kTensor: return (s.writes ? "a write by a product or copy of " : "a read by a product of ") + warp;
    default: return "the allocation, or the end of one, by " + warp;
  }
}

// --- threads' accesses

void Races::allocate_tmem(Warp& w, TmemPart const& part) {
  WarpState const& s = state(w);
  std::vector<TmemCell>& cells = tmem_[w.cta->rank];
  cells.resize(kTmemQuarters * kTmemColumns);
  TmemCell const fresh = {{s.time, w.alive, w.group().pc, s.agent, true, {}}, {}, 0};
  for (u32 quarter = 0; quarter < kTmemQuarters; ++quarter)
    std::fill_n(&cells[quarter * kTmemColumns + part.first], part.count, fresh);
}

void Races::free_tmem(Warp& w, TmemPart const& part) {
  WarpState const& s = state(w);
  tmem_issuers_.clear();
  for (Knowledge const& k : s.groups) tmem_issuers_.push_back({k.lanes, &k.clock});
  access_tmem(s, part, {s.time, w.alive, w.group().pc, s.agent, true, {}});
}

void Races::move_tmem(Warp& w, TmemPart const& part, Kind kind) {
  WarpState const& s = state(w);
  TmemMoves& moves = tmem_moves(w, kind);
  tmem_issuers_.clear();
  for_lanes(w.alive, [&](int l) {
    Clock const* const known = s.known_after_sync[l].get();
    if (!tmem_issuers_.empty() && tmem_issuers_.back().known == known)
      tmem_issuers_.back().lanes |= 1u << l;
    else
      tmem_issuers_.push_back({1u << l, known});
  });
  access_tmem(s, part, {moves.issued++, w.alive, w.group().pc, moves.agent, kind == kTmemStores, {}});
}

void Races::load_tmem(Warp& w, TmemPart const& part) { move_tmem(w, part, kTmemLoads); }
void Races::store_tmem(Warp& w, TmemPart const& part) { move_tmem(w, part, kTmemStores); }
void Races::wait_tmem(Warp& w, Kind kind) {
  TmemMoves& moves = tmem_moves(w, kind);
  moves.done = moves.issued;
}

// --- tensor work's

void Races::read_tmem_by_tensor(TmemPart const& part) {
  tensor_.writes = false;
  access_tmem_by_tensor(part);
}
void Races::write_tmem_by_tensor(TmemPart const& part) {
  tensor_.writes = true;
  access_tmem_by_tensor(part);
}
void Races::access_tmem_by_tensor(TmemPart const& part) {
  Agent const& agent = agents_[tensor_.agent];
  WarpState const& s = warps_[agent.cta * warps_per_cta_ + agent.number];
  tmem_issuers_.assign(1, {tensor_.lanes, s.known_after_sync[first_lane(tensor_.lanes)].get()});
  access_tmem(s, part, tensor_);
}

// --- fences

void Races::fence_before_thread_sync(Warp& w, u32 lanes) {
  WarpState& s = state(w);
  for_lanes(lanes, [&](int l) {
    for (TmemMoves* moves : {&s.loads, &s.stores}) moves->fenced[l] = moves->done;
    s.tensor.fenced[l] = s.tensor.issued;
  });
}

void Races::fence_after_thread_sync(Warp& w, u32 lanes) {
  WarpState& s = state(w);
  for (Knowledge const& k : s.groups) {
    if ((k.lanes & lanes) == 0) continue;
    auto const known = std::make_shared<Clock const>(k.clock);
    for_lanes(k.lanes & lanes, [&](int l) { s.known_after_sync[l] = known; });
  }
}

}  // namespace emu
