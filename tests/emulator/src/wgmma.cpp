// wgmma: products of a warpgroup, with the left operand in shared memory or registers.
//
// They are collective: product number n of the four warps runs when all four have issued it and it is due. Until then
// the accumulators keep their old values.
#include <algorithm>
#include <cstdlib>

#include "families.h"
#include "matrix.h"
#include "races.h"
#include "registers.h"
#include "wgmma.h"

namespace emu {
namespace {

constexpr int kRows = 16;  // of a warp

Warp& sibling(Warp& w, int n) { return w.cta->warps[w.id / 4 * 4 + n]; }

// The right operand, fetched once for the four warps.
struct RightOperand {
  u64 descriptor = 0;
  bool fetched = false;
  RightTerms terms;
};
RightOperand right_operand;

void run_issued(Warp& w, u64 up_to) {
  for (;;) {
    for (int n = 0; n < 4; ++n) {
      Warp& x = sibling(w, n);
      if (x.wgmma.empty() || x.wgmma_done > up_to) return;
    }
    right_operand.fetched = false;
    Races* const r = races(w);
    if (r) {
      std::vector<Clock const*> known;
      for (int n = 0; n < 4; ++n) known.push_back(sibling(w, n).wgmma.front().known.get());
      r->begin_product(sibling(w, 0), known, u32(w.wgmma_done), w.wgmma.front().pc);
    }
    for (int n = 0; n < 4; ++n) {
      Warp& x = sibling(w, n);
      x.wgmma.front().task();
      x.wgmma.pop_front();
      ++x.wgmma_done;
    }
    if (r) r->end_reader();
  }
}

constexpr u32 kFp8 = 1;

struct Product {
  Warp* warp;
  Instruction const* instruction;
  u64 left, right;            // descriptors
  std::vector<u32> fragment;  // the left operand in registers: four of each lane
  bool accumulate, left_across, right_across;

  void fetch_left(Cta& cta, int depth, Element element, u16* a) const {
    if (fragment.empty()) {
      int const first_row = warp->id % 4 * kRows;
      fetch(cta, MatrixDescriptor::of_wgmma(left), {first_row, kRows, 0, depth}, left_across, element, a);
      return;
    }
    for (int r = 0; r < 4; ++r)
      for (int l = 0; l < kLanes; ++l) {
        int const row = l / 4 + 8 * (r % 2), column = l % 4 * 2 + 8 * (r / 2);
        a[row * kStepK + column] = u16(fragment[r * kLanes + l]);
        a[row * kStepK + column + 1] = u16(fragment[r * kLanes + l] >> 16);
      }
  }

  // f(element, lane) for every element of d [16, n] and the accumulator that it is: register r of lane l stands in row
  // l / 4 + 8 (r / 2 % 2), column r / 4 * 8 + l % 4 * 2 + r % 2.
  template <class F>
  void for_each_accumulator(float* d, int n, F const& f) const {
    auto const& accumulators = instruction->operands[0].parts;
    for (int r = 0; r < n / 2; r += 2) {
      float *const even = register_lanes<float>(*warp, accumulators[size_t(r)]), *const odd = register_lanes<float>(
                                                                                     *warp,
                                                                                     accumulators[size_t(r) + 1]);
      float* row = d + r / 2 % 2 * 8 * n + r / 4 * 8;
      for (int l = 0; l < kLanes; l += 4, row += n)
        for (int c = 0; c < 4; ++c) {
          f(row[2 * c], even[l + c]);
          f(row[2 * c + 1], odd[l + c]);
        }
    }
  }

  void operator()() const {
    Cta& cta = *warp->cta;
    Races* const checker = races(*warp);
    int const n = instruction->count;
    bool const fp8 = instruction->option & kFp8;
    Element const element = fp8 ? Element::kE4m3 : Element::kBf16;
    Summation const& sums = fp8 ? kHopperFp8Sums : kBf16Sums;
    static float d[kRows * 256];
    if (accumulate) for_each_accumulator(d, n, [](float& element, float lane) { element = lane; });
    u16 a[kRows * kMaxDepth];
    if (checker) checker->read_for(warp);
    fetch_left(cta, sums.depth, element, a);
    if (checker) checker->read_for(nullptr);
    if (!right_operand.fetched || right_operand.descriptor != right) {
      RightTerms& terms = right_operand.terms;
      fetch(cta, MatrixDescriptor::of_wgmma(right), {0, n, 0, sums.depth}, right_across, element, terms.elements);
      terms.take_apart(sums, n);
      right_operand.descriptor = right;
      right_operand.fetched = true;
    }
    multiply(sums, a, right_operand.terms, d, kRows, n, accumulate);
    for_each_accumulator(d, n, [](float element, float& lane) { lane = element; });
  }
};

// --- settings.wgmma_fences: the registers that a product uses may not have been written since the last wgmma.fence,
// by anything but products. Reading them calls for a fence, too, but which of a kernel's virtual registers will be one
// is not known here: one is asked for before the first product, and where products follow a wait.

void require_fenced(Warp const& w, Operand const& o) {
  for (Operand const& part : o.parts)
    if (part.kind == Operand::kRegister && w.written_after_fences[part.offset / kRegisterUnit] == w.wgmma_fences)
      fault("wgmma uses a register that was written without a wgmma.fence since");
}

// {accumulators}, left, right, accumulate?, sign, sign[, left across][, right across]
void issue(Warp& w, Instruction const& i, u32 mask) {
  if (!converged(w, kAllLanes)) return;
  if (mask != kAllLanes) fault("wgmma by a part of a warp");
  auto const& o = i.operands;
  bool const registers = o[1].kind == Operand::kVector;
  if (settings.wgmma_fences) {
    if (!w.wgmma_fenced) fault("wgmma without a wgmma.fence since the last wgmma.wait_group");
    // An accumulator whose old value does not count is only written.
    if (read_lane<u8>(w, o[3], 0)) require_fenced(w, o[0]);
    if (registers) require_fenced(w, o[1]);
    // The product's, from now on.
    for (Operand const& part : o[0].parts) w.written_after_fences[part.offset / kRegisterUnit] = 0;
  }
  auto const flag = [&](size_t n) { return n < o.size() && o[n].value != 0; };
  if (!flag(4)) fault("wgmma with a negated operand");
  Product p{&w, &i, 0, read_lane<u64>(w, o[2], 0), {}, read_lane<u8>(w, o[3], 0) != 0, false, false};
  if (registers) {
    p.right_across = flag(6);
    for (Operand const& part : o[1].parts) {
      Lanes<u32> scratch;
      u32 const* const values = read<u32>(w, part, scratch);
      p.fragment.insert(p.fragment.end(), values, values + kLanes);
    }
  } else {
    p.left = read_lane<u64>(w, o[1], 0);
    p.left_across = flag(6);
    p.right_across = flag(7);
  }
  w.wgmma_newest = w.wgmma_group + 1;
  std::shared_ptr<Clock const> known;
  if (Races* const r = races(w)) {
    r->begin_operations(w, Races::kProducts);
    known = std::make_shared<Clock>(r->known_to_any_lane(w));
  }
  w.wgmma.push_back({std::move(p), w.wgmma_group, w.group().pc, std::move(known)});
  if (settings.schedule != Schedule::kLate) run_issued(w, ~0ull >> 1);
}

constexpr u32 kLane = 1;  // for races.h a warp's products are its lane 0's

void commit(Warp& w, Instruction const&, u32) {
  ++w.wgmma_group;
  if (Races* const r = races(w)) r->commit(w, kLane, Races::kProducts);
}

void wait(Warp& w, Instruction const& i, u32) {
  u32 const newest_left = u32(i.operands[0].value);
  auto const due = std::count_if(w.wgmma.begin(), w.wgmma.end(),
                                 [&](WgmmaTask const& t) { return t.group + newest_left < w.wgmma_group; });
  u64 const all = w.wgmma_done + u64(due);
  if (due != 0) run_issued(w, all - 1);
  if (w.wgmma_done < all) {
    w.group().wait = Group::kWgmma;
    return;
  }
  if (w.wgmma_group > newest_left) w.wgmma_waited_for = std::max(w.wgmma_waited_for, w.wgmma_group - newest_left);
  w.wgmma_fenced = false;
  if (Races* const r = races(w)) r->wait(w, kLane, Races::kProducts, newest_left);
}

void fence(Warp& w, Instruction const&, u32) {
  w.wgmma_fenced = true;
  ++w.wgmma_fences;
}

}  // namespace

void note_register_writes(Warp& w, Instruction const& i) {
  if (i.operands.empty() || i.execute == issue) return;
  auto const mark = [&](Operand const& o, bool written) {
    if (o.kind == Operand::kRegister) w.written_after_fences[o.offset / kRegisterUnit] = written ? w.wgmma_fences : 0;
  };
  // A copy is as fenced as its source: the compiler may move registers between the fence and the product.
  bool const copy = i.is_move && i.operands.size() == 2 && i.operands[1].kind == Operand::kRegister &&
                    i.operands[0].kind == Operand::kRegister;
  if (copy) {
    u32 const source = w.written_after_fences[i.operands[1].offset / kRegisterUnit];
    return mark(i.operands[0], source == w.wgmma_fences);
  }
  mark(i.operands[0], true);
  if (i.operands[0].kind == Operand::kVector)
    for (Operand const& part : i.operands[0].parts) mark(part, true);
}

Execute decode_wgmma(Instruction& i, Mnemonic& m) {
  if (m.root() != "wgmma" || !m.take("sync") || !m.take("aligned")) return nullptr;
  if (m.take("fence")) return fence;
  if (m.take("commit_group")) return commit;
  if (m.take("wait_group")) return wait;
  // wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16
  std::string const shape = m.take_at(4), sum = m.take_at(5), left = m.take_at(6), right = m.take_at(7);
  size_t const n = shape.find('n'), k = shape.find('k');
  if (!m.take("mma_async") || sum != "f32" || left != right || !shape.starts_with("m64n") || k == shape.npos)
    return nullptr;
  i.count = u16(atoi(shape.c_str() + n + 1));
  bool const bf16 = left == "bf16" && shape.substr(k) == "k16", fp8 = left == "e4m3" && shape.substr(k) == "k32";
  if (fp8 && i.operands[1].kind == Operand::kVector) return nullptr;
  i.option = fp8 ? kFp8 : 0;
  return bf16 || fp8 ? issue : nullptr;
}

}  // namespace emu
