// What Python sets and asks between launches, through ctypes (tests/emulator/control.py has the other side).
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "memory.h"
#include "report.h"
#include "runtime.h"

namespace emu {

Settings settings;

namespace {

// The synchronisation instructions of every kernel, in the units' order.
struct Site {
  Kernel* kernel;
  size_t place;
  Execute original;
};

std::vector<Site> const& sites() {
  static std::vector<Site> const all = [] {
    std::vector<Site> found;
    for (Module* module : runtime().modules) {
      parse(*module);
      for (auto const& [name, kernel] : module->kernels)
        for (size_t n = 0; n < kernel->code.size(); ++n)
          if (kernel->code[n].without_it != nullptr) found.push_back({kernel, n, kernel->code[n].execute});
    }
    return found;
  }();
  return all;
}

// Kept until the next call.
char const* kept(std::string text) {
  static std::string last;
  last = std::move(text);
  return last.c_str();
}

}  // namespace
}  // namespace emu

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void emu_configure(int schedule, unsigned seed, int proxy_fences, int wgmma_fences, int late_tmem_loads,
                          int exact_mma, int trace, unsigned long long instruction_limit) {
  emu::settings.schedule = emu::Schedule(schedule);
  emu::settings.seed = seed;
  emu::settings.proxy_fences = proxy_fences;
  emu::settings.wgmma_fences = wgmma_fences;
  emu::settings.late_tmem_loads = late_tmem_loads;
  emu::settings.exact_mma = exact_mma;
  emu::settings.trace = trace;
  emu::settings.instruction_limit = instruction_limit;
}
EXPORT void emu_set_arch(int arch) { emu::settings.arch = arch; }

// Memory that kernels may touch, other than cudaMalloc's and the allocator's.
EXPORT void emu_add_memory(void* memory, size_t bytes) { emu::allocations().add(memory, bytes); }
EXPORT void emu_remove_memory(void* memory) { emu::allocations().remove(memory); }

// Instructions that no family knows: their texts, a line each, with the kernel's name. Empty: all are known.
EXPORT char const* emu_unknown_instructions() {
  emu::Execute const unknown = emu::unknown_instruction();
  std::string text;
  for (emu::Module* module : emu::runtime().modules) {
    emu::parse(*module);
    for (auto const& [name, kernel] : module->kernels)
      for (emu::Instruction const& i : kernel->code)
        if (i.execute == unknown) text += emu::demangled(name) + ": " + i.text + "\n";
  }
  return emu::kept(std::move(text));
}

EXPORT int emu_kernel_count() {
  int count = 0;
  for (emu::Module* module : emu::runtime().modules) {
    emu::parse(*module);
    count += int(module->kernels.size());
  }
  return count;
}

EXPORT int emu_site_count() { return int(emu::sites().size()); }
// kernel <tab> instruction number <tab> text
EXPORT char const* emu_site(int number) {
  emu::Site const& s = emu::sites().at(size_t(number));
  return emu::kept(emu::demangled(s.kernel->name) + "\t" + std::to_string(s.place) + "\t" +
                   s.kernel->code[s.place].text);
}
// Removes that instruction alone; -1: none.
EXPORT void emu_remove_site(int number) {
  for (emu::Site const& s : emu::sites()) s.kernel->code[s.place].execute = s.original;
  if (number < 0) return;
  emu::Instruction& i = emu::sites().at(size_t(number)).kernel->code[emu::sites()[size_t(number)].place];
  i.execute = i.without_it;
}
EXPORT char const* emu_last_report() { return emu::runtime().last_report.c_str(); }

// Warp instructions of all launches since this was last asked.
EXPORT unsigned long long emu_take_executed() { return std::exchange(emu::runtime().executed, 0); }

// Launches the kernel "test" of a module's text, with an array of pointers to its arguments. 0, or there is a report.
EXPORT int emu_run_ptx(char const* ptx, unsigned grid, unsigned threads, unsigned cluster, unsigned shared,
                       void** arguments) {
  using namespace emu;
  static std::map<std::string, std::unique_ptr<Module>> modules;  // by text
  std::unique_ptr<Module>& module = modules[ptx];
  try {
    if (module == nullptr) {
      auto parsed = std::make_unique<Module>();
      parsed->kernels = parse_module(ptx, parsed->variables);
      parsed->parsed = true;
      module = std::move(parsed);
    }
    runtime().functions[module.get()] = {.module = module.get(), .name = "test"};
  } catch (Fault const& fault) {
    runtime().last_report = fault.what();
    return 1;
  }
  cudaFuncSetAttribute(module.get(), cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
  cudaFuncSetAttribute(module.get(), cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  bool const failed = cudaLaunchKernelExC(&config, module.get(), arguments) != cudaSuccess;
  cudaGetLastError();  // or the next launch of an op would find it
  return failed;
}
