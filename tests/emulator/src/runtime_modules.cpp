// Registration of compiled units, which their static constructors do, and of their kernels and variables.
#include <cstdlib>
#include <cstring>

#include "runtime.h"

namespace emu {

Runtime& runtime() {
  static auto* const state = new Runtime;
  return *state;
}

namespace {

// 0: this PTX does not run on the architecture; otherwise the greater the better.
int fit(std::string const& ptx, int arch) {
  constexpr char const* kTarget = "\n.target sm_";
  size_t const target = ptx.find(kTarget);
  if (target == std::string::npos) return 0;
  char* end;
  int const number = int(strtol(ptx.c_str() + target + strlen(kTarget), &end, 10));
  if (*end == 'a') return number == arch ? 3000 : 0;
  if (*end == 'f') return number / 10 == arch / 10 && number <= arch ? 2000 + number : 0;
  return number <= arch ? number : 0;
}

}  // namespace

void parse(Module& module) {
  if (module.parsed) return;
  std::string const* best = nullptr;
  for (std::string const& ptx : module.ptx)
    if (fit(ptx, settings.arch) > (best ? fit(*best, settings.arch) : 0)) best = &ptx;
  if (best != nullptr) module.kernels = parse_module(*best, module.variables);
  module.parsed = true;
}

Function* find_function(void const* handle) {
  auto const found = runtime().functions.find(handle);
  if (found == runtime().functions.end()) return nullptr;
  Function& function = found->second;
  if (function.kernel == nullptr) {
    parse(*function.module);
    auto const kernel = function.module->kernels.find(function.name);
    if (kernel != function.module->kernels.end()) function.kernel = kernel->second;
  }
  return function.kernel ? &function : nullptr;
}

}  // namespace emu

extern "C" {

// The PTX stands as text in the fat binary (nvcc --no-compress).
void** __cudaRegisterFatBinary(void* wrapper) {
  struct Wrapper {
    int magic, version;
    char const* data;
  };
  char const* const data = static_cast<Wrapper*>(wrapper)->data;
  constexpr size_t kHeader = 16, kSizeAt = 8;
  size_t const size = emu::load<emu::u64>(data + kSizeAt) + kHeader;
  constexpr char const* kBegin = "\n.version ";
  auto* const module = new emu::Module;
  for (size_t i = 0; i + strlen(kBegin) < size; ++i)
    if (memcmp(data + i, kBegin, strlen(kBegin)) == 0) {
      size_t const length = strnlen(data + i, size - i);
      module->ptx.emplace_back(data + i, length);
      i += length;
    }
  emu::runtime().modules.push_back(module);
  return reinterpret_cast<void**>(module);
}

void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }

void __cudaRegisterFunction(void** module, char const* handle, char*, char const* name, int, void*, void*, void*, void*,
                            int*) {
  emu::runtime().functions[handle] = {.module = reinterpret_cast<emu::Module*>(module), .name = name};
}

void __cudaRegisterVar(void** module, char* handle, char*, char const* name, int, size_t bytes, int, int) {
  emu::runtime().variables[handle] = {reinterpret_cast<emu::Module*>(module), name, bytes};
}
}
