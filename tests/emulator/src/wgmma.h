#pragma once

#include "machine.h"

namespace emu {

constexpr u32 kRegisterUnit = kLanes;  // registers begin at multiples of this in a register file

// settings.wgmma_fences: notes which registers an instruction, that has just run, has written.
void note_register_writes(Warp& warp, Instruction const& instruction);

}  // namespace emu
