#pragma once

#include "machine.h"

namespace emu {

// Ends the barrier's phase if every living warp has arrived. Called when one arrives, and when one ends.
void advance_cluster_barrier(Cluster& cluster);

}  // namespace emu
