// The state of a launch: clusters of CTAs of warps, their barriers and what is still under way.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "ptx.h"
#include "settings.h"

namespace emu {

class Clock;
class Races;
using Task = std::function<void()>;

// Lanes that stand at one instruction. A warp is several of these where it has diverged.
struct Group {
  enum Wait : u8 { kNone, kMbarrier, kNamedBarrier, kConvergence, kCluster, kWgmma, kRegisters };
  u32 mask;
  i32 pc = 0;
  Wait wait = kNone;
  u32 address = 0;  // of the mbarrier, or the named barrier's number
  u32 parity = 0;
};

// cp.async and bulk stores: a thread's operations in commit groups, done when it waits for them or, at the latest,
// when they are collected for an mbarrier.
class CommitGroups {
 public:
  void add(int lane, Task task) { pending_.push_back({lane, committed_[lane], std::move(task)}); }
  void commit(u32 mask) {
    for_lanes(mask, [&](int lane) { ++committed_[lane]; });
  }
  void wait(u32 mask, u32 newest_left);  // runs all but so many of the newest groups
  void wait_all(u32 mask);               // runs uncommitted ones as well
  std::vector<Task> take(u32 mask);      // hands them over, to run later
  bool empty() const { return pending_.empty(); }

 private:
  struct Pending {
    int lane;
    u32 group;
    Task task;
  };
  std::vector<Pending> pending_;
  u32 committed_[kLanes] = {};
};

struct WgmmaTask {
  Task task;
  u32 group;
  i32 pc;
  std::shared_ptr<Clock const> known;  // to the warp at the issue (settings.races)
};

struct Cta;
struct Cluster;

// Shared memory, poisoned when a CTA starts: of one CTA after another, those blocks alone that the last one has used.
class SharedMemory {
 public:
  void poison(size_t bytes) {
    constexpr u8 kNanByte = 0xff;
    if (bytes != memory_.size()) {
      memory_.assign(bytes, kNanByte);
      used_.assign(bytes / kBlock + 1, 0);
      return;
    }
    for (size_t n = 0; n < used_.size(); ++n) {
      if (!used_[n]) continue;
      std::memset(memory_.data() + n * kBlock, kNanByte, std::min(kBlock, bytes - n * kBlock));
      used_[n] = 0;
    }
  }
  size_t size() const { return memory_.size(); }
  // bytes > 0, and all within
  u8* use(u32 offset, u32 bytes) {
    for (size_t n = offset / kBlock, last = (offset + bytes - 1) / kBlock; n <= last; ++n) used_[n] = 1;
    return memory_.data() + offset;
  }

 private:
  static constexpr size_t kBlock = 4096;
  std::vector<u8> memory_, used_;
};

struct Warp {
  Cta* cta = nullptr;
  int id = 0;
  Instruction const* code = nullptr;
  u8* registers = nullptr;
  std::vector<u8> reached;         // of each instruction that leaves poison to be restored, whether it has run
  std::vector<i32> reached_first;  // those that have
  u32 alive = 0;
  std::vector<Group> groups;
  int current = 0;  // the group that is running
  u64 executed = 0;
  u32 lane_registers = 0;  // as the device gives them out (setmaxnreg); `registers` holds all that PTX names
  int cluster_phase = 0;   // when it arrived
  bool at_cluster_barrier = false;

  // wgmma is collective: task number n of all four warps of a warpgroup runs at once.
  std::deque<WgmmaTask> wgmma;
  u32 wgmma_group = 0;
  u64 wgmma_done = 0;
  bool wgmma_fenced = false;                   // since the warp began, or last waited for products
  u32 wgmma_newest = 0, wgmma_waited_for = 0;  // groups, from 1 on: the last product's; the last one waited for
  // Of each register, how many times the warp had fenced when it was last written (settings.wgmma_fences).
  std::vector<u32> written_after_fences;
  u32 wgmma_fences = 1;

  CommitGroups copies, bulk_stores;
  std::vector<Task> tmem_loads, tmem_stores;
  std::vector<u8> loading;  // registers of tcgen05.ld that are under way (tmem_loads.h)
  u64 seen_writes = 0;      // of its CTA's, when it last came through a barrier (settings.proxy_fences)

  Group& group() { return groups[current]; }

  // As new, but in the memory of the warp before: a launch may have thousands.
  void renew() {
    Warp next;
    for (i32 const pc : reached_first) reached[size_t(pc)] = 0;
    reached_first.clear();
    next.reached.swap(reached);
    next.reached_first.swap(reached_first);
    next.written_after_fences.swap(written_after_fences);
    next.wgmma_fences = wgmma_fences + 1;
    *this = std::move(next);
  }
};

struct NamedBarrier {
  u32 arrived = 0, expected = 0;
  Instruction const* aligned = nullptr;  // where it is waited at, if the instruction is an aligned one
};

// A thread's write to a 16-byte line of shared memory that no proxy fence has followed. Numbers count a CTA's writes.
struct UnfencedWrite {
  u64 number = 0;  // 0: there is none
  u32 thread = 0, line = 0;
};

struct Cta {
  Cluster* cluster;
  u32 rank;  // in the cluster
  u32 id[3], in_cluster[3];
  SharedMemory shared;  // the first KiB is the system's, as on the device
  u32 dynamic_offset;
  std::vector<Warp> warps;
  std::vector<u8> registers, local;
  NamedBarrier named[16];
  u32 free_registers;       // a lane, that warps have given back; summed up over warps
  std::set<u32> mbarriers;  // offsets of those initialised
  std::vector<u32> tmem;    // 128 lanes x 512 columns
  u32 tmem_allocated = 0;
  std::vector<UnfencedWrite> unfenced;  // of each line the last one
  std::deque<UnfencedWrite> writes;     // in their order; those fenced since may be among them
  u64 write_count = 0;
  int threads;
};

struct Launch {
  Kernel* kernel;
  u32 grid[3], block[3], cluster[3];
  u32 dynamic_shared;
  u32 sms;
  u8* parameters;
};

struct Cluster {
  Launch* launch;
  std::vector<Cta> ctas;
  int phase = 0;
  std::deque<Task> copies;  // TMA and bulk copies: complete in any order
  std::deque<Task> tensor;  // tcgen05: completes in order
  u32 landing = 0;          // of the copies, those that write shared memory
  u64 phases_ended = 0;     // of its mbarriers
  std::shared_ptr<Races> races;
};

// Runs the launch and returns the number of warp instructions; a Fault says where it happened.
u64 run_launch(Launch& launch);

// A lane's, of a kernel that sets them (setmaxnreg): what ptxas gives it, all that there are, in eights.
u32 first_registers(Kernel const& kernel, u32 threads);

// Whether all of `lanes` that still live stand here. If not, the group waits, and the instruction runs again once they
// do: the caller returns at once.
bool converged(Warp& warp, u32 lanes);

void complete_copy_late(Cluster& cluster, bool lands_in_shared, Task task);
bool run_some_late_task(Cluster& cluster);

// Runs `task` now, or late where the schedule says so.
template <class F>
void complete_copy(Cluster& cluster, bool lands_in_shared, F task) {
  if (settings.schedule != Schedule::kLate) return task();
  complete_copy_late(cluster, lands_in_shared, std::move(task));
}
template <class F>
void complete_tensor(Cluster& cluster, F task) {
  if (settings.schedule != Schedule::kLate) return task();
  cluster.tensor.push_back(std::move(task));
}

std::mt19937& random_numbers();

}  // namespace emu
