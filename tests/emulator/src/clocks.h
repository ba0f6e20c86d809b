// Vector clocks of the happens-before checker (races.h): who knows which of whose accesses are complete.
//
// An agent is what accesses shared memory on its own: the threads of a warp, or something asynchronous. Its time is a
// number that grows. Clocks hold an entry an agent, not one a thread; that the lanes of a warp may be known up to
// different times is kept for two times. A third is rounded up: then a race may be missed, and none is invented.
#pragma once

#include <algorithm>
#include <vector>

#include "base.h"

namespace emu {

// Accesses before `all` of every lane, and before `some` of `lanes`, are known.
struct Known {
  u32 all = 0, some = 0, lanes = 0;

  bool covers(u32 who, u32 time) const { return time < all || (time < some && (who & ~lanes) == 0); }

  void join(Known const& other) {
    all = std::max(all, other.all);
    u32 const mine = some > all ? lanes : 0, theirs = other.some > all ? other.lanes : 0;
    some = std::max(mine ? some : 0, theirs ? other.some : 0);
    lanes = mine | theirs;
    if (lanes == kAllLanes) all = some;
  }
};

class Clock {
 public:
  Known of(u32 agent) const { return agent < known_.size() ? known_[agent] : Known{}; }

  bool covers(u32 agent, u32 who, u32 time) const { return of(agent).covers(who, time); }

  void add(u32 agent, Known const& known) {
    if (agent >= known_.size()) known_.resize(agent + 1);
    known_[agent].join(known);
  }

  void join(Clock const& other) {
    join(known_, other.known_);
    join(fenced_, other.fenced_);
  }

  // --- proxy fences: what is complete for the async proxy as well, as a fence has come after it. Both halves pass
  // through barriers together.
  bool covers_fenced(u32 agent, u32 who, u32 time) const {
    return agent < fenced_.size() && fenced_[agent].covers(who, time);
  }
  void fence(Clock const& before) { join(fenced_, before.known_); }

 private:
  static void join(std::vector<Known>& mine, std::vector<Known> const& theirs) {
    if (theirs.size() > mine.size()) mine.resize(theirs.size());
    for (size_t n = 0; n < theirs.size(); ++n) mine[n].join(theirs[n]);
  }

  std::vector<Known> known_, fenced_;
};

}  // namespace emu
