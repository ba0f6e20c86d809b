#include "memory.h"

#include "races.h"
#include "registers.h"

namespace emu {

void Allocations::add(void* memory, size_t bytes) {
  u64 const begin = reinterpret_cast<u64>(memory);
  Range& range = ranges_[begin];
  range.end = std::max(range.end, begin + bytes);
  ++range.count;
}

void Allocations::remove(void* memory) {
  auto const found = ranges_.find(reinterpret_cast<u64>(memory));
  if (found == ranges_.end() || --found->second.count > 0) return;
  ranges_.erase(found);
  begin_ = end_ = 0;
}

bool Allocations::another_contains(u64 address, u64 bytes) {
  auto found = ranges_.upper_bound(address);
  if (found == ranges_.begin()) return false;
  --found;
  if (address + bytes > found->second.end) return false;
  begin_ = found->first;
  end_ = found->second.end;
  return true;
}

void require_global_memory(u64 address, u64 bytes, char const* what) {
  constexpr u64 kNullPage = 4096;
  bool const allowed = settings.bounds ? allocations().contains(address, bytes) : address >= kNullPage;
  if (!allowed) fault("global address %#lx, %lu bytes, is outside every allocation: %s", address, bytes, what);
}

void fault_outside_shared(Cta const& cta, u32 address, u32 bytes) {
  fault("shared address %#x, %u bytes, is outside the CTA's %zu bytes", address, bytes,
        cta.shared.size() - cta.dynamic_offset);
}

u8* memory_of_any_space(Warp& w, int lane, u64 address, u32 bytes, Instruction const& i) {
  if (i.space == Space::kParameter) return reinterpret_cast<u8*>(address);
  if (i.space == Space::kLocal || address >> 60 == kLocalBit >> 60) {
    u64 const size = w.cta->cluster->launch->kernel->local, offset = address & ~kLocalBit;
    if (offset + bytes > size) fault("local address %#lx, %u bytes, is outside the thread's %lu", offset, bytes, size);
    return w.cta->local.data() + (w.id * kLanes + lane) * size + offset;
  }
  if (address >> 60 == kSharedBit >> 60) return shared_memory(*w.cta, u32(address), bytes);
  return global_memory(address, bytes, i.text.c_str());
}

void addresses_of(Warp const& w, Operand const& o, u64* addresses) {
  Lanes<u64> scratch;
  u64 const* const base = read<u64>(w, o.parts[0], scratch);
  for (int l = 0; l < kLanes; ++l) addresses[l] = base[l] + o.value;
}

void note_write(Warp& w, int lane, u32 address, u32 bytes) {
  Cta& cta = *w.cta;
  if (!settings.proxy_fences || settings.races || address >> 24 != cta.rank) return;
  u32 const offset = address & kOffsetMask;
  if (cta.unfenced.empty()) cta.unfenced.resize(cta.shared.size() / 16 + 1);
  ++cta.write_count;
  for (u32 line = offset / 16; line <= (offset + bytes - 1) / 16; ++line) {
    cta.unfenced[line] = {cta.write_count, u32(w.id * kLanes + lane), line};
    cta.writes.push_back(cta.unfenced[line]);
  }
}

void see_writes(Warp& w) { w.seen_writes = w.cta->write_count; }

void proxy_fence(Warp& w, Instruction const&, u32 mask) {
  if (!settings.proxy_fences) return;
  if (Races* const r = races(w)) return r->fence_proxies(w, mask);
  Cta& cta = *w.cta;
  auto const is_covered = [&](UnfencedWrite const& write) {
    return write.number <= w.seen_writes ||
           (write.thread / kLanes == u32(w.id) && has_lane(mask, int(write.thread % kLanes)));
  };
  std::erase_if(cta.writes, [&](UnfencedWrite const& write) {
    if (!is_covered(write)) return false;
    if (UnfencedWrite& last = cta.unfenced[write.line]; last.number == write.number) last = {};
    return true;
  });
}

void check_async_read(Cta& cta, u32 address, u32 bytes, char const* reader) {
  if (Races* const races = cta.cluster->races.get()) return races->async_read(address, bytes);
  if (!settings.proxy_fences || cta.unfenced.empty()) return;
  u32 const offset = address & kOffsetMask;
  for (u32 line = offset / 16; line <= (offset + bytes - 1) / 16; ++line)
    if (UnfencedWrite const& write = cta.unfenced[line]; write.number != 0)
      fault("%s reads shared memory at dynamic offset %d that thread %u wrote without a proxy fence since", reader,
            int(line * 16) - int(cta.dynamic_offset), write.thread);
}

}  // namespace emu
