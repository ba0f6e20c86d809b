// Address spaces: which memory a kernel may touch, and where it is on the host.
#pragma once

#include <map>

#include "machine.h"
#include "parser.h"

namespace emu {

constexpr u64 kSharedBit = 1ull << 60;  // of a generic address; kLocalBit is parser.h's
// A shared-window address: the CTA's rank in bits 24 and up, an offset below.
constexpr u32 kOffsetMask = 0xffffff;

inline u32 in_cta(u32 rank, u32 address) { return rank << 24 | (address & kOffsetMask); }

// Memory that kernels may touch. Ranges may repeat; they are counted.
class Allocations {
 public:
  void add(void* memory, size_t bytes);
  void remove(void* memory);
  bool contains(u64 address, u64 bytes) {
    return (address >= begin_ && address + bytes <= end_) || another_contains(address, bytes);
  }

 private:
  bool another_contains(u64 address, u64 bytes);

  struct Range {
    u64 end;
    u32 count;
  };
  std::map<u64, Range> ranges_;
  u64 begin_ = 0, end_ = 0;  // where the last access was
};
inline Allocations& allocations() {
  static auto* const all = new Allocations;  // kernels' static constructors come first, destructors after
  return *all;
}

void require_global_memory(u64 address, u64 bytes, char const* what);  // faults if it is none
[[noreturn]] void fault_outside_shared(Cta const& cta, u32 address, u32 bytes);

// Host memory of `bytes` bytes of global memory; `what` is for the report.
inline u8* global_memory(u64 address, u64 bytes, char const* what) {
  if (!settings.bounds || !allocations().contains(address, bytes)) require_global_memory(address, bytes, what);
  return reinterpret_cast<u8*>(address);
}
// Of shared memory, this CTA's or, by the address's rank, another's in the cluster.
inline u8* shared_memory(Cta& cta, u32 address, u32 bytes) {
  u32 const rank = address >> 24, offset = address & kOffsetMask;
  auto& ctas = cta.cluster->ctas;
  if (rank >= ctas.size() || offset < kSharedReserved || offset + bytes > ctas[rank].shared.size())
    fault_outside_shared(cta, address, bytes);
  return ctas[rank].shared.use(offset, bytes);
}
u8* memory_of_any_space(Warp& warp, int lane, u64 address, u32 bytes, Instruction const& instruction);
// Of any state space, as thread `lane` sees it.
inline u8* memory(Warp& warp, int lane, u64 address, u32 bytes, Instruction const& instruction) {
  if (instruction.space == Space::kShared) return shared_memory(*warp.cta, u32(address), bytes);
  if (instruction.space == Space::kGlobal) return global_memory(address, bytes, instruction.text.c_str());
  return memory_of_any_space(warp, lane, address, bytes, instruction);
}

// A memory operand's addresses.
void addresses_of(Warp const& warp, Operand const& operand, u64* addresses);

// --- settings.proxy_fences, where races.h does not look, which is exact: a thread's writes to its CTA's shared memory
// are noted until it runs a proxy fence, or another thread does that has come through a barrier since; the async proxy
// (wgmma, tcgen05, TMA, bulk copies) may not read what is noted. Which barrier is not asked.
void see_writes(Warp& warp);  // it comes through a barrier
void note_write(Warp& warp, int lane, u32 address, u32 bytes);
void proxy_fence(Warp& warp, Instruction const& instruction, u32 mask);
void check_async_read(Cta& cta, u32 address, u32 bytes, char const* reader);

inline bool is_shared(Instruction const& i, u64 address) {
  return i.space == Space::kShared || (i.space == Space::kGeneric && (address & kSharedBit) != 0);
}

}  // namespace emu
