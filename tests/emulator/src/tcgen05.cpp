// tcgen05.mma and its completion. Products run in the order in which they were issued.
#include "families.h"
#include "matrix.h"
#include "mbarrier.h"
#include "races.h"
#include "registers.h"
#include "tmem.h"

namespace emu {
namespace {

// The instruction descriptor, of which only the forms below are known: float32 sums, dense, no negation.
struct Shape {
  int m, n;
  bool left_across, right_across;
};

Shape shape_of(u32 descriptor, Element element) {
  u32 const format = element == Element::kBf16 ? 1 : 0;
  bool const known = (descriptor & 0xf) == 0 && (descriptor >> 4 & 3) == 1 && (descriptor >> 7 & 7) == format &&
                     (descriptor >> 10 & 7) == format && (descriptor >> 13 & 3) == 0;
  if (!known) fault("instruction descriptor %#x, which is not emulated", descriptor);
  return {int(descriptor >> 24 & 31) << 4, int(descriptor >> 17 & 63) << 3, bool(descriptor >> 15 & 1),
          bool(descriptor >> 16 & 1)};
}

struct Product {
  Cta* cta;
  int pair;  // 2 for a pair of CTAs
  Element element;
  bool weight_stationary, left_in_tmem, accumulate;
  u32 to;           // TMEM
  u64 left, right;  // descriptors; or left is in TMEM
  u32 descriptor;

  TensorPipeline pipeline() const {
    constexpr u32 kRowsAndColumns = 63u << 17 | 31u << 24;
    u32 const form = u32(weight_stationary) << 2 | u32(element == Element::kE4m3) << 1 | u32(pair == 2);
    return {TensorPipeline::kProduct, to, (descriptor & kRowsAndColumns) | form};
  }

  int step_count() const { return element == Element::kBf16 ? 1 : 2; }

  // The pair's CTAs each hold half of the columns.
  void fetch_right(Shape const& s, int step, u16* b) const {
    int const each = s.n / pair;
    for (int c = 0; c < pair; ++c)
      fetch(pair_member(*cta, pair, c), MatrixDescriptor::of_tcgen05(right), {0, each, step * kStepK, kStepK},
            s.right_across, element, b + c * each * kStepK);
  }

  void fetch_left(Cta& member, Shape const& s, int rows, int first_lane, int step, u16* a) const {
    if (!left_in_tmem)
      return fetch(member, MatrixDescriptor::of_tcgen05(left), {0, rows, step * kStepK, kStepK}, s.left_across, element,
                   a);
    u32 const column = tmem_column(u32(left));
    for (int r = 0; r < rows; ++r)
      for (int k = 0; k < kStepK; ++k)
        a[r * kStepK + k] = u16(tmem_cell(member, u32(first_lane + r), column + u32(k / 2)) >> (16 * (k & 1)));
  }

  void operator()() const {
    Shape const s = shape_of(descriptor, element);
    int const rows = s.m / pair;
    // 64 rows a CTA take 64 lanes, and the columns' second half the 64 lanes below.
    bool const halves = (pair == 2 && s.m == 128) || (weight_stationary && s.m == 64);
    if (weight_stationary && s.m == 32) fault("tcgen05.mma.ws with 32 rows is not emulated");
    if (!weight_stationary && pair == 1 && s.m != 128) fault("tcgen05.mma with %d rows is not emulated", s.m);
    if (element == Element::kE4m3 && (pair == 2 || left_in_tmem || weight_stationary))
      fault("this form of tcgen05.mma is not emulated for fp8");
    int const parts = halves ? 2 : 1, columns = s.n / parts;
    u32 const column = tmem_column(to);
    if (Races* const r = cta->cluster->races.get())
      for (int c = 0; c < pair; ++c) {
        Cta& member = pair_member(*cta, pair, c);
        constexpr u32 kColumnsOfStep = 8;  // 32 bytes
        if (left_in_tmem) r->read_tmem_by_tensor({&member, tmem_column(u32(left)), kColumnsOfStep});
        r->write_tmem_by_tensor({&member, column, u32(columns)});
      }
    for (int step = 0; step < step_count(); ++step) {
      std::vector<u16> b(size_t(s.n * kStepK)), a(size_t(rows * kStepK));
      fetch_right(s, step, b.data());
      for (int c = 0; c < pair; ++c) {
        Cta& member = pair_member(*cta, pair, c);
        for (int p = 0; p < parts; ++p) {
          fetch_left(member, s, rows, p * 64, step, a.data());
          std::vector<float> d(size_t(rows * columns));
          for (int r = 0; r < rows; ++r)
            std::memcpy(&d[size_t(r * columns)], &tmem_row(member, p * 64 + r, column, columns), size_t(columns) * 4);
          multiply(a.data(), &b[size_t(p * columns * kStepK)], d.data(), rows, columns, accumulate || step > 0);
          for (int r = 0; r < rows; ++r)
            std::memcpy(&tmem_row(member, p * 64 + r, column, columns), &d[size_t(r * columns)], size_t(columns) * 4);
        }
      }
    }
  }

  static u32& tmem_row(Cta& member, int lane, u32 column, int columns) {
    tmem_cell(member, u32(lane), column + u32(columns) - 1);
    return tmem_cell(member, u32(lane), column);
  }
};

constexpr u32 kPair = 1, kFp8 = 2, kWeightStationary = 4;

// [tmem], left or [left in tmem], right, instruction descriptor, [{lanes not written}, ]accumulate?
void issue(Warp& w, Instruction const& i, u32 mask) {
  for_lanes(mask, [&](int l) {
    auto const& o = i.operands;
    bool const in_tmem = o[1].kind == Operand::kMemory;
    Operand const& accumulate = o[o[4].kind == Operand::kVector ? 5 : 4];
    Product p{};
    p.cta = w.cta;
    p.pair = i.option & kPair ? 2 : 1;
    p.element = i.option & kFp8 ? Element::kE4m3 : Element::kBf16;
    p.weight_stationary = i.option & kWeightStationary;
    p.left_in_tmem = in_tmem;
    p.accumulate = read_predicate(w, accumulate, l);
    p.to = u32(read_lane<u64>(w, o[0].parts[0], l) + o[0].value);
    p.left = in_tmem ? read_lane<u64>(w, o[1].parts[0], l) + o[1].value : read_lane<u64>(w, o[1], l);
    p.right = read_lane<u64>(w, o[2], l);
    p.descriptor = read_lane<u32>(w, o[3], l);
    Races* const r = races(w);
    if (r) r->begin_tensor(w, l, p.pipeline());
    complete_tensor(*w.cta->cluster, p);
    if (r) r->end_reader();
  });
}

// [mbarrier][, CTAs]: an arrival when everything that was issued before is done
void commit(Warp& w, Instruction const& i, u32 mask) {
  for_lanes(mask, [&](int l) {
    Cta* const cta = w.cta;
    u32 const barrier = u32(read_lane<u64>(w, i.operands[0].parts[0], l) + i.operands[0].value);
    u32 const ctas = i.operands.size() > 1 ? read_lane<u32>(w, i.operands[1], l) & 0xffff : 0;
    auto const arrive = [&w, cta, l](u32 at) {
      if (Races* const r = races(w)) r->commit_tensor(w, l, at);
      mbarrier_update(*cta, at, 1, 0);
    };
    complete_tensor(*cta->cluster, [=] {
      if (ctas == 0) return arrive(barrier);
      for (u32 rank = 0; rank < cta->cluster->ctas.size(); ++rank)
        if (has_lane(ctas, int(rank))) arrive(in_cta(rank, barrier));
    });
  });
}

void fence_before_thread_sync(Warp& w, Instruction const&, u32 mask) {
  if (Races* const r = races(w)) r->fence_before_thread_sync(w, mask);
}
void fence_after_thread_sync(Warp& w, Instruction const&, u32 mask) {
  if (Races* const r = races(w)) r->fence_after_thread_sync(w, mask);
}

}  // namespace

Execute decode_tcgen05(Instruction& i, Mnemonic& m) {
  if (m.root() != "tcgen05") return nullptr;
  bool const pair = m.take("cta_group::2");
  m.ignore({"cta_group::1"});
  if (m.take("fence::before_thread_sync")) return fence_before_thread_sync;
  if (m.take("fence::after_thread_sync")) return fence_after_thread_sync;
  if (m.take("commit")) {
    m.ignore({"mbarrier::arrive::one", "shared::cluster", "shared::cta", "b64", "multicast::cluster"});
    return commit;
  }
  if (!m.take("mma")) return nullptr;
  bool const stationary = m.take("ws"), fp8 = m.take("kind::f8f6f4");
  if (!fp8 && !m.take("kind::f16")) return nullptr;
  // What the collector keeps changes nothing in the result.
  m.ignore({"collector::a::fill", "collector::a::use", "collector::a::lastuse", "collector::a::discard"});
  m.ignore({"collector::b0::fill", "collector::b0::use", "collector::b0::lastuse", "collector::b0::discard"});
  i.option = (pair ? kPair : 0) | (fp8 ? kFp8 : 0) | (stationary ? kWeightStationary : 0);
  return issue;
}

}  // namespace emu
