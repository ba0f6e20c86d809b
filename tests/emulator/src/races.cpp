#include "races.h"

#include "memory.h"
#include "report.h"

namespace emu {

Races::Issuer Races::issuer(Warp& w, int lane) {
  WarpState const& s = state(w);
  for (Knowledge const& k : s.groups)
    if (has_lane(k.lanes, lane)) return {&s, &k.clock, 1u << lane};
  fault("the happens-before checker lost lane %d", lane);
}

bool Races::ordered(Stamp const& before, Issuer const& now) {
  WarpState const& w = *now.warp;
  u32 rest = before.lanes;
  if (before.agent == w.agent) {
    rest &= ~now.own;
  } else if (before.agent == w.copies.agent || before.agent == w.bulk_stores.agent) {
    u32 const* const done = before.agent == w.copies.agent ? w.copies.done : w.bulk_stores.done;
    for_lanes(rest & now.own, [&](int l) { rest &= ~(u32(before.time < done[l]) << l); });
  }
  return rest == 0 || now.clock->of(before.agent).covers(rest, before.time);
}

namespace {

std::vector<std::pair<std::string, std::string>> allowed_races;

bool writes_plainly(Access x) { return x == Access::kWrite || x == Access::kRewrite || x == Access::kAsyncWrite; }

}  // namespace

void allow_race(std::string first, std::string second) { allowed_races.emplace_back(first, second); }

bool Races::allowed(Stamp const& before, Stamp const& now) const {
  auto const [known, is_new] = allowed_.try_emplace(u64(before.pc) << 32 | u32(now.pc));
  if (is_new)
    known->second = std::any_of(allowed_races.begin(), allowed_races.end(), [&](auto const& texts) {
      return place_in_code(before.pc).find(texts.first) != std::string::npos &&
             place_in_code(now.pc).find(texts.second) != std::string::npos;
    });
  return known->second;
}

bool Races::conflict(Access a, Access b) {  // a came first
  auto const reads = [](Access x) { return x == Access::kRead || x == Access::kStrongRead; };
  auto const strong = [](Access x) { return x == Access::kAtomic || x == Access::kStrongRead; };
  bool const again = b == Access::kRewrite && writes_plainly(a);
  return !again && !(reads(a) && reads(b)) && !(strong(a) && strong(b));
}

void Races::check(u32 address, Stamp const& before, Stamp const& now, std::vector<Issuer> const& issuers) const {
  // Lanes that write to one place by one instruction: one of them wins.
  bool const together = before.agent == now.agent && before.time == now.time && before.pc == now.pc;
  if (together && agents_[now.agent].kind == kThreads) return;
  for (Issuer const& who : issuers) {
    if (only_ != nullptr && only_ != who.warp) continue;
    bool const race = !ordered(before, who) && !allowed(before, now);
    if (!race && !lacks_fence(before, now, *who.clock)) continue;
    Cta const& cta = cluster_.ctas[address >> 24];
    fault("race on shared memory at dynamic offset %d: %s\n    %s\n      %s\n    before %s\n      %s",
          int(address & kOffsetMask) - int(cta.dynamic_offset), race ? "nothing orders" : "no proxy fence orders",
          describe(before).c_str(), place_in_code(before.pc).c_str(), describe(now).c_str(),
          place_in_code(now.pc).c_str());
  }
}

// The async proxy comes to what the generic one has accessed.
bool Races::lacks_fence(Stamp const& before, Stamp const& now, Clock const& known) const {
  Kind const second = agents_[now.agent].kind, first = agents_[before.agent].kind;
  bool const copied = second == kTransactions && now.kind == Access::kRead;
  bool const by_async_proxy =
      second == kProducts || second == kBulkStores || second == kTensor || copied || now.kind == Access::kAsyncWrite;
  return settings.proxy_fences && by_async_proxy && (first == kThreads || first == kCopies) &&
         !known.covers_fenced(before.agent, before.lanes, before.time);
}

std::string Races::place_in_code(i32 pc) const {
  Kernel const& kernel = *cluster_.launch->kernel;
  Instruction const& i = kernel.code[size_t(pc)];
  return i.text + "\n      " + place_of(kernel, i);
}

void Races::visit(u32 rank, Stamp const& stamp) {
  Agent const& agent = agents_[stamp.agent];
  bool const by_copy = agent.kind == kTransactions && stamp.kind == Access::kRead;
  if ((agent.kind != kThreads && !by_copy) || agent.cta == rank) return;
  Stamp& last = visits_[rank][stamp.agent];
  u32 const lanes = last.time == stamp.time ? last.lanes : 0;
  last = stamp;
  last.lanes |= lanes;
}

void Races::end_cta(Cta const& cta) {
  Clock known;
  for (Warp const& w : cta.warps) known.join(known_to_any_lane(w));
  for (auto const& [agent, stamp] : visits_[cta.rank])
    if (!known.covers(agent, stamp.lanes, stamp.time))
      fault(
          "CTA %u may end before others are done with its shared memory: nothing orders\n    %s\n      %s\n"
          "    before the CTA's end",
          cta.rank, describe(stamp).c_str(), place_in_code(stamp.pc).c_str());
  for (auto const& [address, m] : mbarriers_)
    if (address >> 24 == cta.rank && m.committed > m.waited_for)
      fault("CTA %u may end before a commit arrives at the mbarrier at dynamic offset %d: nobody has waited for it",
            cta.rank, int(address & kOffsetMask) - int(cta.dynamic_offset));
}

std::string Races::describe(Stamp const& s) const {
  constexpr char const* kVerbs[] = {"a read", "a strong read", "a write", "a write", "a write", "an atomic access"};
  Agent const& agent = agents_[s.agent];
  std::string const cta = cluster_.ctas.size() > 1 ? " of CTA " + std::to_string(agent.cta) : "";
  std::string const number = std::to_string(agent.number);
  std::string text = kVerbs[int(s.kind)];
  switch (agent.kind) {
    case kThreads: text += " by warp " + number; break;
    case kCopies: text += " by cp.async of warp " + number; break;
    case kBulkStores: text += " by a bulk store of warp " + number; break;
    case kTensor: return text + " by tcgen05 of warp " + number + cta;
    case kProducts: return text + " by wgmma of warpgroup " + number + cta;
    case kTmemLoads:
    case kTmemStores: break;  // have stamps of their own
    case kTransactions:
      return text + " by a copy that the mbarrier at dynamic offset " +
             std::to_string(int(agent.number & kOffsetMask) - int(cluster_.ctas[agent.cta].dynamic_offset)) + " counts";
  }
  char lanes[32];
  snprintf(lanes, sizeof lanes, ", lanes %08x", s.lanes);
  return text + cta + lanes;
}

void Races::add_reader(Word& word, MoreReaders& more, Stamp const& stamp, std::vector<Issuer> const& issuers) {
  Stamp* const places[kReaders] = {&word.first_reader, &more.stamps[0], &more.stamps[1], &more.stamps[2]};
  for (u32 n = 0; n < word.readers; ++n) {
    Stamp* const place = places[n];
    if (place->kind != stamp.kind) continue;
    bool const alike = place->agent == stamp.agent;
    if (alike && place->time == stamp.time) {
      place->lanes |= stamp.lanes;
      place->bytes |= stamp.bytes;
      return;
    }
    // Who comes after this access comes after those of the agent, and those of others, that came before it.
    bool const later = alike ? (place->lanes & ~stamp.lanes) == 0 : issuers.size() == 1 && ordered(*place, issuers[0]);
    if (later && (place->bytes & ~stamp.bytes) == 0) {
      *place = stamp;
      return;
    }
  }
  *places[word.readers < kReaders ? word.readers++ : stamp.time % kReaders] = stamp;
}

void Races::access(u32 address, u32 bytes, Stamp stamp, std::vector<Issuer> const& issuers) {
  u32 const rank = address >> 24, first = address & kOffsetMask, end = first + bytes;
  if (rank >= words_.size() || end > words_[rank].size() * kWord) return;  // a fault comes
  visit(rank, stamp);
  Stamp checked{0, 0, 0, kNoAgent, 0, Access::kRead};  // neighbouring words often have the same last write
  auto const is_checked = [&](Stamp const& s) {
    return s.agent == checked.agent && s.time == checked.time && s.lanes == checked.lanes && s.pc == checked.pc;
  };
  for (u32 at = first / kWord; at * kWord < end; ++at) {
    u32 const low = std::max(first, at * kWord) % kWord, high = std::min(end - at * kWord, kWord);
    stamp.bytes = u8((1u << high) - (1u << low));
    Word& word = words_[rank][at];
    used_[rank][at / kBlock] = 1;
    if ((word.write.bytes & stamp.bytes) && conflict(word.write.kind, stamp.kind) && !is_checked(word.write)) {
      check(rank << 24 | at * kWord, word.write, stamp, issuers);
      checked = word.write;
    }
    for (u32 n = 0; n < word.readers; ++n) {
      Stamp const& r = n == 0 ? word.first_reader : more_[rank][at].stamps[n - 1];
      if ((r.bytes & stamp.bytes) && conflict(r.kind, stamp.kind)) check(rank << 24 | at * kWord, r, stamp, issuers);
    }
    if (!writes_plainly(stamp.kind)) {
      add_reader(word, more_[rank][at], stamp, issuers);
      continue;
    }
    Stamp& last = word.write;
    bool const same = last.agent == stamp.agent && last.time == stamp.time && last.lanes == stamp.lanes;
    u8 const others = same ? last.bytes : u8(0);
    last = stamp;
    last.bytes |= others;
    if (stamp.bytes == 0xf) word.readers = 0;
  }
}

void Races::access(Warp& w, u32 lanes, u32 address, u32 bytes, Access kind) {
  WarpState const& s = state(w);
  one_.assign(1, issuer(w, first_lane(lanes)));
  if ((lanes & (lanes - 1)) != 0) one_[0].own = 0;
  access(address, bytes, {s.time, lanes, w.group().pc, s.agent, 0, kind}, one_);
}

// Its word was written by the initialisation alone.
void Races::use_mbarriers(Warp& w, u32 lanes, u64 const* mbarriers) {
  for_lanes(lanes, [&](int l) { use_mbarrier(w, l, u32(mbarriers[l])); });
}

void Races::visit_mbarriers(Warp& w, u32 lanes, u64 const* mbarriers) {
  WarpState const& s = state(w);
  for_lanes(lanes, [&](int l) {
    visit(u32(mbarriers[l]) >> 24, {s.time, 1u << l, w.group().pc, s.agent, 0xf, Access::kAtomic});
  });
}

void Races::use_mbarrier(Warp& w, int lane, u32 address) {
  WarpState const& s = state(w);
  one_.assign(1, issuer(w, lane));
  Word const& word = words_[address >> 24][(address & kOffsetMask) / kWord];
  Stamp const now{s.time, 1u << lane, w.group().pc, s.agent, 0xf, Access::kAtomic};
  if (word.write.bytes) check(address, word.write, now, one_);
}

void Races::write_by_copy(Warp& w, int lane, u32 address, u32 bytes) {
  Operations const& o = operations(w, kCopies);
  one_.assign(1, issuer(w, lane));
  access(address, bytes, {o.issued - 1, 1u << lane, w.group().pc, o.agent, 0, Access::kWrite}, one_);
}

void Races::write_by_transaction(Warp& w, int lane, u32 address, u32 bytes, u32 mbarrier, Access kind) {
  Mbarrier const& m = mbarrier_at(mbarrier);
  use_mbarrier(w, lane, mbarrier);
  access(address, bytes, {m.phase, 1, w.group().pc, m.agent, 0, kind}, one_);
}

void Races::begin_bulk_store(Warp& w, int lane) {
  Operations const& o = operations(w, kBulkStores);
  issuers_.assign(1, issuer(w, lane));
  reader_ = {o.issued - 1, 1u << lane, w.group().pc, o.agent, 0, Access::kRead};
  only_ = nullptr;
}

void Races::begin_transaction_read(Warp& w, int lane, u32 mbarrier) {
  Mbarrier const& m = mbarrier_at(mbarrier);
  issuers_.assign(1, issuer(w, lane));
  reader_ = {m.phase, 1, w.group().pc, m.agent, 0, Access::kRead};
  only_ = nullptr;
}

void Races::begin_tensor(Warp& w, int lane, TensorPipeline pipeline) {
  TensorWork& work = state(w).tensor;
  if (work.agent == kNoAgent) {
    work.agent = new_agent(kTensor, w.cta->rank, u32(w.id));
    new_agent(kTensor, w.cta->rank, u32(w.id));
  }
  issuers_.assign(1, issuer(w, lane));
  auto& before = work.before;
  auto found = std::find_if(before.begin(), before.end(), [&](auto const& x) { return x.first == lane; });
  if (found == before.end()) found = before.insert(found, {lane, {}});
  found->second.join(*issuers_[0].clock);
  reader_ = {work.issued++, 1u << lane, w.group().pc, work.agent, 0, Access::kRead};
  tensor_ = {reader_.time, reader_.lanes, reader_.pc, reader_.agent, false, pipeline};
  only_ = nullptr;
}

void Races::begin_product(Warp& first, std::vector<Clock const*> const& known, u32 number, i32 pc) {
  issuers_.clear();
  for (size_t n = 0; n < known.size(); ++n)
    issuers_.push_back({&state(first.cta->warps[size_t(first.id) + n]), known[n], kAllLanes});
  reader_ = {number, kAllLanes, pc, operations(first, kProducts).agent, 0, Access::kRead};
  only_ = nullptr;
}

void Races::async_read(u32 address, u32 bytes) {
  if (!issuers_.empty()) access(address, bytes, reader_, issuers_);
}

Clock Races::known_to_any_lane(Warp const& w) {
  Clock all;
  for (Knowledge const& k : state(w).groups) all.join(k.clock);
  return all;
}

}  // namespace emu
