// Instructions in which the lanes of a warp take part together.
#include "families.h"
#include "memory.h"
#include "races.h"
#include "registers.h"

namespace emu {

bool converged(Warp& w, u32 lanes) {
  lanes &= w.alive;
  if ((w.group().mask & lanes) == lanes) return true;
  w.group().wait = Group::kConvergence;
  return false;
}

namespace {

// The membermask that an operand holds; all members must name the same, so one lane's is enough.
u32 members(Warp const& w, Operand const& o, u32 mask) { return read_lane<u32>(w, o, first_lane(mask)); }

enum Shuffle : u32 { kIndex, kButterfly, kUp, kDown };

// d[|p], a, b, c, membermask
void shuffle(Warp& w, Instruction const& i, u32 mask) {
  size_t const a = i.has_result ? 2 : 1;
  if (!converged(w, members(w, i.operands[a + 3], mask))) return;
  Lanes<u32> sa, sb, sc, result;
  Lanes<u8> in_range;
  u32 const *const value = read<u32>(w, i.operands[a], sa), *const by = read<u32>(w, i.operands[a + 1], sb),
                   *const c = read<u32>(w, i.operands[a + 2], sc);
  for (int l = 0; l < kLanes; ++l) {
    int const clamp = c[l] & 31, segment = c[l] >> 8 & 31, b = by[l] & 31;
    int const least = l & segment, most = least | (clamp & ~segment);
    int from = 0;
    bool ok = false;
    switch (i.option) {
      case kIndex: from = least | (b & ~segment), ok = from <= most; break;
      case kButterfly: from = l ^ b, ok = from <= most; break;
      case kUp: from = l - b, ok = from >= most; break;
      case kDown: from = l + b, ok = from <= most; break;
    }
    if (ok && has_lane(mask, l) && !has_lane(mask, from)) fault("shfl reads lane %d, which takes no part", from);
    result[l] = value[ok ? from : l];
    in_range[l] = ok;
  }
  write<u32>(w, i.operands[0], mask, result);
  if (i.has_result) write<u8>(w, i.operands[1], mask, in_range);
}

enum Vote : u32 { kAny, kAll, kUniform, kBallot };

void vote(Warp& w, Instruction const& i, u32 mask) {
  u32 const who = members(w, i.operands[2], mask) & w.alive;
  if (!converged(w, who)) return;
  u32 ballot = 0;
  for_lanes(who, [&](int l) { ballot |= u32(read_predicate(w, i.operands[1], l)) << l; });
  if (i.option == kBallot) {
    Lanes<u32> result;
    std::fill_n(result, kLanes, ballot);
    write<u32>(w, i.operands[0], mask, result);
    return;
  }
  Lanes<u8> result;
  bool const answer = i.option == kAny ? ballot != 0 : i.option == kAll ? ballot == who : ballot == who || ballot == 0;
  std::fill_n(result, kLanes, u8(answer));
  write<u8>(w, i.operands[0], mask, result);
}

// d|p, membermask: the first lane
void elect(Warp& w, Instruction const& i, u32 mask) {
  u32 const who = members(w, i.operands[2], mask);
  if (!converged(w, who)) return;
  int const leader = first_lane(who & w.alive);
  Lanes<u32> lane;
  Lanes<u8> chosen;
  for (int l = 0; l < kLanes; ++l) {
    lane[l] = u32(leader);
    chosen[l] = l == leader;
  }
  write<u32>(w, i.operands[0], mask, lane);
  write<u8>(w, i.operands[1], mask, chosen);
}

void active_mask(Warp& w, Instruction const& i, u32 mask) {
  Lanes<u32> result;
  std::fill_n(result, kLanes, mask);
  write<u32>(w, i.operands[0], mask, result);
}

enum Reduction : u32 { kAdd, kMin, kMax, kAnd, kOr, kXor };
constexpr char const* kReductions[] = {"add", "min", "max", "and", "or", "xor"};

template <class T>
void reduce(Warp& w, Instruction const& i, u32 mask) {
  u32 const who = members(w, i.operands[2], mask) & w.alive;
  if (!converged(w, who)) return;
  Lanes<T> scratch, result;
  T const* const a = read<T>(w, i.operands[1], scratch);
  T sum = a[first_lane(who)];
  for_lanes(who & (who - 1), [&](int l) {
    switch (i.option) {
      case kAdd: sum += a[l]; break;
      case kMin: sum = std::min(sum, a[l]); break;
      case kMax: sum = std::max(sum, a[l]); break;
      case kAnd: sum &= a[l]; break;
      case kOr: sum |= a[l]; break;
      case kXor: sum ^= a[l]; break;
    }
  });
  std::fill_n(result, kLanes, sum);
  write<T>(w, i.operands[0], mask, result);
}

void warp_barrier(Warp& w, Instruction const& i, u32 mask) {
  u32 const who = members(w, i.operands[0], mask);
  if (!converged(w, who)) return;
  see_writes(w);
  if (Races* const r = races(w)) r->synchronise_warp(w, who);
}

// The place of the name that m has, -1 without.
template <size_t n>
int take_place(Mnemonic& m, char const* const (&names)[n]) {
  for (size_t k = 0; k < n; ++k)
    if (m.take(names[k])) return int(k);
  return -1;
}

}  // namespace

Execute decode_warp(Instruction& i, Mnemonic& m) {
  std::string const root = m.root(), type = m.type();
  if (root == "bar" && m.take("warp")) return m.take("sync") ? warp_barrier : nullptr;
  if (root == "elect") return m.take("sync") ? elect : nullptr;
  m.take_type();
  if (root == "activemask" && type == "b32") return active_mask;
  if (root != "shfl" && root != "vote" && root != "redux") return nullptr;
  if (!m.take("sync")) return nullptr;
  int place = -1;
  if (root == "shfl" && type == "b32") {
    constexpr char const* kNames[] = {"idx", "bfly", "up", "down"};
    i.option = u32(place = take_place(m, kNames));
    return place < 0 ? nullptr : shuffle;
  }
  if (root == "vote") {
    constexpr char const* kNames[] = {"any", "all", "uni", "ballot"};
    i.option = u32(place = take_place(m, kNames));
    return place < 0 || (place == kBallot) != (type == "b32") ? nullptr : vote;
  }
  if (root == "redux") {
    i.option = u32(place = take_place(m, kReductions));
    if (place < 0) return nullptr;
    return type == "s32" ? reduce<i32> : type == "u32" || type == "b32" ? reduce<u32> : nullptr;
  }
  return nullptr;
}

}  // namespace emu
