// The registers of tcgen05.ld, which nothing but a move may read before tcgen05.wait::ld. Holds on every schedule.
#pragma once

#include "machine.h"

namespace emu {

void note_tmem_load(Warp& w, Instruction const& load);
// Is `i`, which runs next, allowed while loads are under way?
void check_loading(Warp& w, Instruction const& i);

}  // namespace emu
