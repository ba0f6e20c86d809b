#include "tmem_use.h"

#include <algorithm>

#include "tmem.h"
#include "wgmma.h"

namespace emu {
namespace {

u64 now = 0;  // counts uses and fences

u32 name_of(TmemUser const& u) { return (u.warp->cta->rank << 16 | u32(u.warp->id) << 1 | u32(u.product)) + 1; }

template <class F>
void for_each_use(TmemPart const& part, F const& f) {
  std::vector<TmemUse>& uses = part.cta->tmem_uses;
  for (u32 quarter = 0; quarter < kTmemQuarters; ++quarter) {
    if (part.quarter >= 0 && u32(part.quarter) != quarter) continue;
    for (u32 column = part.first; column < part.first + part.count; ++column)
      if (column < kTmemColumns) f(uses[quarter * kTmemColumns + column], column);
  }
}

void require_handover(TmemUser const& user, TmemUse::Access const& last, u32 column) {
  if (last.user == 0 || last.user == name_of(user)) return;
  u32 const name = last.user - 1, rank = name >> 16, warp = name >> 1 & 0x7fff;
  bool const product = name & 1;
  Warp const& other = user.warp->cta->cluster->ctas[rank].warps[warp];
  char const* const what = product ? "the products of warp" : "warp";
  if (user.fenced_after < last.time)
    fault("tensor memory column %u: %swarp %d has run no tcgen05.fence::after_thread_sync since %s %u used it", column,
          user.product ? "a product of " : "", user.warp->id, what, warp);
  if (!product && other.fenced_before < last.time)
    fault(
        "tensor memory column %u is used by %swarp %d, but warp %u has run no tcgen05.fence::before_thread_sync since "
        "it used it",
        column, user.product ? "a product of " : "", user.warp->id, warp);
}

}  // namespace

void note_tmem_read(TmemUser const& user, TmemPart const& part) {
  ++now;
  for_each_use(part, [&](TmemUse& use, u32 column) {
    require_handover(user, use.written, column);
    use.read = {name_of(user), now};
  });
}

void note_tmem_write(TmemUser const& user, TmemPart const& part) {
  ++now;
  for (Warp const& w : part.cta->warps)
    for (auto const& [first, count] : w.tmem_columns_loading)
      if (first < part.first + part.count && part.first < first + count &&
          (part.quarter < 0 || part.quarter == w.id % int(kTmemQuarters)))
        fault("tensor memory columns %u to %u are overwritten, while warp %d still loads them", first,
              first + count - 1, w.id);
  for_each_use(part, [&](TmemUse& use, u32 column) {
    require_handover(user, use.written, column);
    require_handover(user, use.read, column);
    use.written = {name_of(user), now};
    use.read = {};
  });
}

void fence_before_handover(Warp& w, Instruction const&, u32) { w.fenced_before = ++now; }
void fence_after_handover(Warp& w, Instruction const&, u32) { w.fenced_after = ++now; }

void note_tmem_load(Warp& w, Instruction const& load, TmemPart const& part) {
  if (w.loading.empty()) w.loading.resize(w.cta->cluster->launch->kernel->register_bytes / kRegisterUnit + 1);
  for (Operand const& o : load.operands[0].parts)
    if (o.kind == Operand::kRegister) w.loading[o.offset / kRegisterUnit] = 1;
  w.tmem_columns_loading.push_back({part.first, part.count});
}

void note_tmem_loads_done(Warp& w) {
  w.loading.clear();
  w.tmem_columns_loading.clear();
}

void check_loading(Warp& w, Instruction const& i) {
  auto const is_loading = [&](auto const& self, Operand const& o) -> bool {
    if (o.kind == Operand::kRegister) return w.loading[o.offset / kRegisterUnit];
    return std::any_of(o.parts.begin(), o.parts.end(), [&](Operand const& part) { return self(self, part); });
  };
  if (i.operands.empty()) return;
  // Results come first, and are not read; other instructions begin with an address.
  bool const has_result = i.operands[0].kind != Operand::kMemory;
  bool reads = false;
  for (size_t n = has_result; n < i.operands.size(); ++n) reads = reads || is_loading(is_loading, i.operands[n]);
  // The compiler may move registers before it waits.
  if (reads && !i.is_move) fault("a register is read that tcgen05.ld has not loaded yet: no tcgen05.wait::ld since");
  if (!has_result) return;
  auto const mark = [&](Operand const& o) {
    if (o.kind == Operand::kRegister) w.loading[o.offset / kRegisterUnit] = reads;
  };
  mark(i.operands[0]);
  for (Operand const& part : i.operands[0].parts) mark(part);
}

}  // namespace emu
