// Checks of tensor memory that hold on every schedule:
//
//   handover    columns that another warp, or another warp's products, has used since must be fenced on both sides:
//               tcgen05.fence::before_thread_sync by a warp after its use (a commit has it), ::after_thread_sync by
//               whoever is next, before its own; so that nobody uses them any more, before they are freed
//   loads       the registers of tcgen05.ld are not read, nor its columns overwritten, before tcgen05.wait::ld
#pragma once

#include "machine.h"

namespace emu {

// Columns [first, first + count) of a CTA's lanes, or of a quarter of them alone.
struct TmemPart {
  Cta* cta;
  u32 first, count;
  int quarter = -1;
};

// By a warp itself, or by its products: those look at when the warp had fenced as it issued them.
struct TmemUser {
  Warp* warp;
  bool product;
  u64 fenced_after;

  static TmemUser of_warp(Warp& w) { return {&w, false, w.fenced_after}; }
  static TmemUser of_product(Warp& w) { return {&w, true, w.fenced_after}; }
};

void note_tmem_read(TmemUser const& user, TmemPart const& part);
void note_tmem_write(TmemUser const& user, TmemPart const& part);
void fence_before_handover(Warp& w, Instruction const&, u32);
void fence_after_handover(Warp& w, Instruction const&, u32);

// A load has been issued; all have arrived; is `i`, which runs next, allowed while some are under way?
void note_tmem_load(Warp& w, Instruction const& load, TmemPart const& part);
void note_tmem_loads_done(Warp& w);
void check_loading(Warp& w, Instruction const& i);

}  // namespace emu
