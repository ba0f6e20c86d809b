#include "report.h"

#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>

#include "mbarrier.h"
#include "source_lines.h"

namespace emu {

Warp* running_warp = nullptr;

namespace {

template <class... Arguments>
std::string formatted(char const* format, Arguments... arguments) {
  char text[1024];
  snprintf(text, sizeof text, format, arguments...);
  return text;
}

Instruction const& instruction_of(Warp const& w, Group const& g) {
  return w.cta->cluster->launch->kernel->code[size_t(g.pc)];
}

std::string waits_for(Warp const& w, Group const& g) {
  switch (g.wait) {
    case Group::kMbarrier: {
      MbarrierState const s = mbarrier_state(*w.cta, g.address);
      return formatted("mbarrier at dynamic offset %d, parity %u: phase %u, %u of %u arrivals pending, %ld bytes",
                       int(g.address & kOffsetMask) - int(w.cta->dynamic_offset), g.parity, s.phase, s.pending,
                       s.expected, s.bytes);
    }
    case Group::kNamedBarrier: {
      NamedBarrier const& b = w.cta->named[g.address];
      return formatted("barrier %u: %u of %u threads", g.address, b.arrived, b.expected);
    }
    case Group::kConvergence: return "the warp's other lanes";
    case Group::kCluster: return "the cluster's barrier";
    case Group::kWgmma: return "wgmma of the other warps";
    case Group::kRegisters:
      return formatted("registers: it has %u, and %u are free", w.lane_registers, w.cta->free_registers);
    default: return "nothing";
  }
}

}  // namespace

std::string demangled(std::string const& name) {
  int status = 0;
  char* const text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  std::string result = status == 0 ? text : name;
  free(text);
  for (std::string const noise : {"(anonymous namespace)::", "(int)", "(bool)", "void "})
    for (size_t at; (at = result.find(noise)) != std::string::npos;) result.erase(at, noise.size());
  // Without parameters. (Among template arguments, an enum's name stands in parentheses, too.)
  size_t end = 0;
  for (int depth = 0; end < result.size() && (depth > 0 || result[end] != '('); ++end)
    depth += (result[end] == '<') - (result[end] == '>');
  return result.substr(0, end);
}

std::string place_of(Kernel const& kernel, Instruction const& i) {
  std::string text = formatted("PTX line %u", i.line);
  if (std::string const source = kernel.lines->of(i.line); !source.empty()) text += ", " + source;
  return text;
}

std::string located(Launch const& launch, std::string const& message) {
  std::string text = "emulator: " + message + "\n  in " + demangled(launch.kernel->name);
  if (running_warp == nullptr) return text;
  Warp const& w = *running_warp;
  text += formatted(", cta %u %u %u, warp %d", w.cta->id[0], w.cta->id[1], w.cta->id[2], w.id);
  if (w.current < 0 || w.current >= int(w.groups.size())) return text;
  Group const& g = w.groups[size_t(w.current)];
  Instruction const& i = instruction_of(w, g);
  return text + formatted(", lanes %08x\n  at %s\n  ", g.mask, i.text.c_str()) + place_of(*launch.kernel, i);
}

std::string describe_waiting(Cluster const& cluster) {
  constexpr size_t kLongest = 6000;
  std::string text;
  for (Cta const& cta : cluster.ctas)
    for (Warp const& w : cta.warps)
      for (Group const& g : w.groups) {
        text += formatted("  cta %u warp %d lanes %08x waits for %s\n    at %d: %s\n", cta.id[0], w.id, g.mask,
                          waits_for(w, g).c_str(), g.pc, instruction_of(w, g).text.substr(0, 100).c_str());
        if (text.size() > kLongest) return text + "  ...";
      }
  return text;
}

void trace_launch(Launch const& launch, u64 executed) {
  fprintf(stderr, "[emulator] %s: grid %u x %u x %u, %u threads, %u bytes of shared memory, %lu warp instructions\n",
          demangled(launch.kernel->name).c_str(), launch.grid[0], launch.grid[1], launch.grid[2],
          launch.block[0] * launch.block[1] * launch.block[2], launch.dynamic_shared, executed);
}

}  // namespace emu
