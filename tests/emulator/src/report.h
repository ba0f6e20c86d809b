// What a person is told: where a fault happened, who waits for what.
#pragma once

#include <string>

#include "machine.h"

namespace emu {

extern Warp* running_warp;  // null: an asynchronous task, or the launch itself

// The message with kernel, CTA, warp, lanes and instruction.
std::string located(Launch const& launch, std::string const& message);
std::string describe_waiting(Cluster const& cluster);  // a line a group of lanes
void trace_launch(Launch const& launch, u64 executed);
std::string place_of(Kernel const& kernel, Instruction const& instruction);  // its line in the PTX and in the sources
std::string demangled(std::string const& name);

}  // namespace emu
