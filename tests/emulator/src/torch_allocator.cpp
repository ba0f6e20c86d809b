// Torch's CPU allocator while kernels are emulated: kernels may touch each tensor's bytes and no others, and new memory
// is NaN. Part of _C_emu only.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <malloc.h>

#include <cstdlib>
#include <cstring>
#include <limits>

#include "memory.h"

namespace {

void release(void* memory) {
  emu::allocations().remove(memory);
  free(memory);
}

// As aligned as torch's CUDA allocator, so that op.cpp takes the same ways.
struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    constexpr size_t kAlign = 512;
    if (bytes == 0) return {nullptr, nullptr, &release, c10::Device(c10::DeviceType::CPU)};
    void* const memory = aligned_alloc(kAlign, (bytes + kAlign - 1) / kAlign * kAlign);
    if (memory == nullptr) throw std::bad_alloc();
    memset(memory, 0xff, bytes);
    emu::allocations().add(memory, bytes);
    return {memory, memory, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, void const* from, size_t bytes) const override { memcpy(to, from, bytes); }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) void emu_use_allocator() {
  // What is freed is kept: a launch has megabytes of registers, whose pages would be the kernel's to clear each time.
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  static Allocator allocator;
  constexpr uint8_t kBeforeTorchs = 100;
  c10::SetCPUAllocator(&allocator, kBeforeTorchs);
}
