// How launches run. Set between them, through the functions of control.cpp.
#pragma once

#include <string>

#include "base.h"

namespace emu {

enum class Schedule : int {
  kFair = 0,    // warps in turn, each until it blocks; asynchronous work completes at once
  kSkewed = 1,  // a fixed random order of warps: one runs only while none before it can
  kLate = 2,    // random slices of random warps, split lanes; asynchronous work completes when nothing else can run
};

struct Settings {
  Schedule schedule = Schedule::kFair;
  u32 seed = 1;
  bool proxy_fences = false;     // shared memory written by a thread, then read by the async proxy, needs a fence
  bool wgmma_fences = false;     // registers written by a thread, then used by wgmma, need a fence
  bool late_tmem_loads = false;  // tcgen05.ld results appear at wait::ld; false alarms where PTX moves them before
  bool races = false;            // accesses to shared memory need an order; not with Schedule::kLate
  bool bounds = true;            // global addresses must lie in known allocations
  bool trace = false;            // a line a launch
  int arch = 90;                 // of the device to answer as
  u32 multiprocessors = 0;       // 0: as many as that device has
  u64 instruction_limit = 0;     // warp instructions a launch; 0: none
};

extern Settings settings;

// The device that is emulated: an H200 or a B200.
constexpr int kSharedOptin = 232448, kSharedDefault = 49152, kSharedMultiprocessor = 233472, kSharedReserved = 1024;
inline u32 device_multiprocessors() { return settings.arch >= 100 ? 148 : 132; }
inline u32 multiprocessors() {
  return settings.multiprocessors != 0 ? settings.multiprocessors : device_multiprocessors();
}

}  // namespace emu
