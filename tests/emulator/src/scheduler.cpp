// Runs a launch: one cluster after another, its warps in the order that the schedule gives.
#include <algorithm>
#include <numeric>

#include "cluster.h"
#include "mbarrier.h"
#include "races.h"
#include "registers.h"
#include "report.h"
#include "tmem_loads.h"
#include "wgmma.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace emu {
namespace {

u32 lanes_set(u8 const* predicate) {
#ifdef __AVX2__
  __m256i const bytes = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(predicate));
  return ~u32(_mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_setzero_si256())));
#else
  u32 mask = 0;
  for (int l = 0; l < kLanes; ++l) mask |= u32(predicate[l] != 0) << l;
  return mask;
#endif
}

u32 active_lanes(Warp const& w, Instruction const& i, u32 mask) {
  if (i.predicate < 0) return mask;
  u32 const set = lanes_set(w.registers + i.predicate);
  return mask & (i.predicate_negated ? ~set : set);
}

// Those who wait for a state rather than for each other look at it again.
void wake(Warp& w) {
  for (Group& g : w.groups)
    if (g.wait == Group::kMbarrier || g.wait == Group::kCluster || g.wait == Group::kWgmma ||
        g.wait == Group::kRegisters)
      g.wait = Group::kNone;
}

void exit_lanes(Warp& w, u32 lanes) {
  w.alive &= ~lanes;
  w.group().mask &= ~lanes;
  // Those who waited for the lanes look again.
  for (Group& g : w.groups)
    if (g.wait == Group::kConvergence) g.wait = Group::kNone;
  if (w.alive != 0) return;
  if (w.wgmma_newest > w.wgmma_waited_for) fault("the warp ends before it has waited for its matrix products");
  Cta const& cta = *w.cta;
  advance_cluster_barrier(*cta.cluster);
  auto const ended = [](Warp const& x) { return x.alive == 0; };
  if (cta.cluster->races && std::all_of(cta.warps.begin(), cta.warps.end(), ended)) cta.cluster->races->end_cta(cta);
}

// One instruction of the current group. False if it waits, or is no more.
bool step(Warp& w) {
  Group& g = w.group();
  Instruction const& i = w.code[g.pc];
  u32 const mask = active_lanes(w, i, g.mask);
  if (i.flow == Instruction::kNext) {
    if (mask != 0) {
      if (i.result_exposed && !w.reached[g.pc]) {
        w.reached[g.pc] = 1;
        w.reached_first.push_back(g.pc);
      }
      if (!w.loading.empty()) check_loading(w, i);
      i.execute(w, i, mask);
      if (g.wait != Group::kNone) return false;
      if (!w.written_after_fences.empty()) note_register_writes(w, i);
    }
    ++g.pc;
  } else if (i.flow == Instruction::kExit) {
    ++g.pc;
    exit_lanes(w, mask);
    if (g.mask == 0) w.groups.erase(w.groups.begin() + w.current);
    ++w.executed;
    return false;
  } else if (mask == g.mask) {
    g.pc = i.target;
  } else {
    ++g.pc;
    if (mask != 0) {
      g.mask &= ~mask;
      w.groups.push_back({.mask = mask, .pc = i.target});
    }
  }
  ++w.executed;
  return true;
}

bool can_merge(Group const& g) { return g.wait == Group::kNone || g.wait == Group::kConvergence; }

void merge_groups(Warp& w, u32 ahead) {
  auto& groups = w.groups;
  for (size_t a = 0; a < groups.size(); ++a)
    for (size_t b = a + 1; b < groups.size();) {
      bool const apart = ((groups[a].mask & ahead) != 0) != ((groups[b].mask & ahead) != 0);
      if (groups[a].pc != groups[b].pc || !can_merge(groups[a]) || !can_merge(groups[b]) || apart) {
        ++b;
        continue;
      }
      groups[a].mask |= groups[b].mask;
      groups[a].wait = Group::kNone;
      groups.erase(groups.begin() + i64(b));
    }
}

// The group to run: of those that can the one furthest behind, so that lanes meet again; those `ahead` first.
int choose_group(Warp const& w, u32 ahead) {
  int best = -1;
  for (int n = 0; n < int(w.groups.size()); ++n) {
    Group const& g = w.groups[n];
    if (g.wait != Group::kNone) continue;
    bool const first = (g.mask & ahead) != 0, best_first = best >= 0 && (w.groups[best].mask & ahead) != 0;
    if (best < 0 || (first != best_first ? first : g.pc < w.groups[best].pc)) best = n;
  }
  return best;
}

// Some of a whole warp's lanes, which may run ahead of the others until they have to wait for them: what a missing
// __syncwarp allows.
u32 split_lanes(Warp& w) {
  if (w.groups.size() != 1 || w.groups[0].wait != Group::kNone) return 0;
  Group& whole = w.groups[0];
  u32 const choices[] = {1u, ~1u, u32(random_numbers()()), 0xffffu, 0xffff0000u};
  u32 const ahead = choices[random_numbers()() % std::size(choices)] & whole.mask;
  if (ahead == 0 || ahead == whole.mask) return 0;
  Group other = whole;
  whole.mask &= ~ahead;
  other.mask = ahead;
  w.groups.push_back(other);
  return ahead;
}

// Up to so many instructions; whether there was any.
bool run_warp(Warp& w, u64 budget, bool split) {
  u64 const start = w.executed, end = start + budget;
  running_warp = &w;
  wake(w);
  u32 ahead = split ? split_lanes(w) : 0;
  while (w.alive && w.executed < end) {
    w.current = choose_group(w, ahead);
    if (w.current < 0) break;
    if ((w.group().mask & ahead) == 0) ahead = 0;  // they wait
    if (w.groups.size() == 1) {
      while (step(w) && w.groups.size() == 1 && w.executed < end) {
      }
    } else {
      step(w);
      merge_groups(w, ahead);
    }
  }
  running_warp = nullptr;
  return w.executed != start;
}

// A cluster's CTAs from start to end. The object serves one cluster after another, to keep its memory.
class ClusterRun {
 public:
  explicit ClusterRun(Launch& launch) : launch_(launch), kernel_(*launch.kernel) {
    cluster_.launch = &launch;
    cluster_.ctas.resize(launch.cluster[0] * launch.cluster[1] * launch.cluster[2]);
    for (Cta& cta : cluster_.ctas)
      for (u32 n = 0; n < warp_count(); ++n) cta.warps.emplace_back();
  }

  u64 run(u64 number) {
    set_up(number);
    std::vector<Warp*> warps;
    for (Cta& cta : cluster_.ctas)
      for (Warp& w : cta.warps) warps.push_back(&w);
    switch (settings.schedule) {
      case Schedule::kFair: run_in_turn(warps); break;
      case Schedule::kSkewed: run_by_priority(warps); break;
      case Schedule::kLate: run_late(warps); break;
    }
    check_end();
    while (run_some_late_task(cluster_)) {
    }
    for (Cta& cta : cluster_.ctas) check_mbarriers(cta);
    return executed();
  }

 private:
  u32 threads() const { return launch_.block[0] * launch_.block[1] * launch_.block[2]; }
  u32 warp_count() const { return (threads() + kLanes - 1) / kLanes; }

  u64 executed() const {
    u64 sum = 0;
    for (Cta const& cta : cluster_.ctas)
      for (Warp const& w : cta.warps) sum += w.executed;
    return sum;
  }

  void set_up(u64 number) {
    cluster_.phase = 0;
    cluster_.landing = 0;
    u32 place[3];
    u64 rest = number;
    for (int d = 0; d < 3; ++d) {
      u32 const clusters = launch_.grid[d] / launch_.cluster[d];
      place[d] = u32(rest % clusters);
      rest /= clusters;
    }
    for (u32 rank = 0; rank < cluster_.ctas.size(); ++rank) {
      Cta& cta = cluster_.ctas[rank];
      u32 inner = rank;
      for (int d = 0; d < 3; ++d) {
        cta.in_cluster[d] = inner % launch_.cluster[d];
        inner /= launch_.cluster[d];
        cta.id[d] = place[d] * launch_.cluster[d] + cta.in_cluster[d];
      }
      set_up(cta, rank);
    }
    if (!settings.races) return;
    if (!cluster_.races) cluster_.races = std::make_shared<Races>(cluster_);
    cluster_.races->begin();
  }

  // Memory and registers begin as NaN, or as numbers that no address is.
  void set_up(Cta& cta, u32 rank) {
    constexpr u32 kAlign = 1024;
    cta.cluster = &cluster_;
    cta.rank = rank;
    cta.threads = int(threads());
    cta.dynamic_offset = (kSharedReserved + kernel_.static_shared + kAlign - 1) / kAlign * kAlign;
    cta.shared.poison(cta.dynamic_offset + launch_.dynamic_shared);
    poison_registers(cta);
    cta.local.assign(size_t(warp_count()) * kLanes * kernel_.local, 0xff);
    std::fill_n(cta.named, std::size(cta.named), NamedBarrier{});
    cta.free_registers = 0;
    cta.mbarriers.clear();
    cta.tmem_allocated = 0;
    for (UnfencedWrite const& write : cta.writes) cta.unfenced[write.line] = {};
    cta.writes.clear();
    for (u32 n = 0; n < warp_count(); ++n) {
      Warp& w = cta.warps[n];
      w.renew();
      w.reached.resize(kernel_.code.size());
      w.cta = &cta;
      w.id = int(n);
      w.lane_registers = first_registers(kernel_, threads());
      w.code = kernel_.code.data();
      w.registers = cta.registers.data() + size_t(n) * kernel_.register_bytes;
      u32 const lanes = std::min(u32(kLanes), threads() - n * kLanes);
      w.alive = lanes == kLanes ? kAllLanes : (1u << lanes) - 1;
      w.groups.push_back({.mask = w.alive});
      if (settings.wgmma_fences && kernel_.has_wgmma)
        w.written_after_fences.resize(kernel_.register_bytes / kRegisterUnit + 1);
    }
  }

  // Only registers that instructions of the CTA before have written, which name them first, can have another content;
  // and only of some that matters (exposed.cpp).
  void poison_registers(Cta& cta) const {
    constexpr u8 kPoison = 0xcd;
    size_t const bytes = kernel_.register_bytes;
    if (cta.registers.size() != bytes * warp_count()) return cta.registers.assign(bytes * warp_count(), kPoison);
    auto const poison = [](Warp& w, Operand const& o) {
      if (o.kind == Operand::kRegister) std::memset(w.registers + o.offset, kPoison, size_t(kLanes) * o.width);
    };
    for (Warp& w : cta.warps)
      for (i32 const pc : w.reached_first) {
        Instruction const& i = kernel_.code[size_t(pc)];
        for (size_t n = 0; n < std::min(i.operands.size(), i.has_result ? 2ul : 1ul); ++n) {
          Operand const& o = i.operands[n];
          poison(w, o);
          if (o.kind == Operand::kVector)
            for (Operand const& part : o.parts) poison(w, part);
        }
      }
  }

  bool alive() const {
    for (Cta const& cta : cluster_.ctas)
      for (Warp const& w : cta.warps)
        if (w.alive) return true;
    return false;
  }

  void check_limit() const {
    if (settings.instruction_limit && executed() > settings.instruction_limit)
      fault("more than %lu warp instructions: it seems not to end", settings.instruction_limit);
  }

  [[noreturn]] void deadlock() const { fault("deadlock\n%s", describe_waiting(cluster_).c_str()); }

  void run_in_turn(std::vector<Warp*> const& warps) {
    constexpr u64 kSlice = 100'000;
    while (alive()) {
      bool any = false;
      for (Warp* w : warps) any |= run_warp(*w, kSlice, false);
      if (!any) deadlock();
      check_limit();
    }
  }

  void run_by_priority(std::vector<Warp*> warps) {
    constexpr u64 kSlice = 1000;
    std::shuffle(warps.begin(), warps.end(), random_numbers());
    while (alive()) {
      auto const ran = std::find_if(warps.begin(), warps.end(), [&](Warp* w) { return run_warp(*w, kSlice, false); });
      if (ran == warps.end()) deadlock();
      check_limit();
    }
  }

  // Asynchronous work completes when no warp can run, until a phase ends; with odd seeds, now and then before.
  void run_late(std::vector<Warp*> warps) {
    constexpr u32 kShortest = 2, kSpread = 500;
    auto& random = random_numbers();
    while (alive()) {
      bool any = false;
      std::shuffle(warps.begin(), warps.end(), random);
      for (Warp* w : warps) {
        any |= run_warp(*w, kShortest + random() % kSpread, random() % 4 == 0);
        if (settings.seed % 2 == 1 && random() % 16 == 0) any |= run_some_late_task(cluster_);
      }
      for (u64 const before = cluster_.phases_ended; !any && cluster_.phases_ended == before;)
        if (!run_some_late_task(cluster_)) deadlock();
      check_limit();
    }
  }

  // What a kernel may not leave behind.
  void check_end() const {
    bool copies = cluster_.landing != 0;
    for (Cta const& cta : cluster_.ctas) {
      if (cta.tmem_allocated) fault("%u columns of tensor memory are not freed", cta.tmem_allocated);
      for (Warp const& w : cta.warps) {
        copies = copies || !w.copies.empty();
        if (!w.bulk_stores.empty()) fault("a bulk store still reads shared memory when the CTA ends");
      }
    }
    if (!cluster_.tensor.empty()) fault("matrix products, or their commits, are still under way when the CTA ends");
    if (copies) fault("copies to shared memory are still under way when the CTA ends");
  }

  void check_mbarriers(Cta& cta) const {
    for (u32 const address : cta.mbarriers)
      if (i64 const bytes = mbarrier_state(cta, address).bytes)
        fault("mbarrier at dynamic offset %d ends with %ld bytes expected that did not come",
              int(address & kOffsetMask) - int(cta.dynamic_offset), bytes);
  }

  Launch& launch_;
  Kernel const& kernel_;
  Cluster cluster_;
};

}  // namespace

std::mt19937& random_numbers() {
  static std::mt19937 numbers;
  return numbers;
}

u64 run_launch(Launch& launch) {
  random_numbers().seed(settings.seed);
  u64 clusters = 1, executed = 0;
  for (int d = 0; d < 3; ++d) clusters *= launch.grid[d] / launch.cluster[d];
  ClusterRun run(launch);
  try {
    for (u64 n = 0; n < clusters; ++n) executed += run.run(n);
  } catch (Fault const& f) {
    std::string const text = located(launch, f.what());
    running_warp = nullptr;
    throw Fault(text);
  }
  if (settings.trace) trace_launch(launch, executed);
  return executed;
}

void complete_copy_late(Cluster& cluster, bool lands_in_shared, Task task) {
  cluster.landing += lands_in_shared;
  cluster.copies.push_back([&cluster, lands_in_shared, task = std::move(task)] {
    cluster.landing -= lands_in_shared;
    task();
  });
}

bool run_some_late_task(Cluster& cluster) {
  size_t const copies = cluster.copies.size(), all = copies + !cluster.tensor.empty();
  if (all == 0) return false;
  size_t const chosen = random_numbers()() % all;
  auto& queue = chosen < copies ? cluster.copies : cluster.tensor;
  if (chosen < copies) std::swap(queue[chosen], queue.front());  // no erase(): there may be many
  Task const task = std::move(queue.front());
  queue.pop_front();
  task();
  return true;
}

}  // namespace emu
