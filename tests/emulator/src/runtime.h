// The stand-in for the CUDA runtime: what its parts share.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "machine.h"

namespace emu {

// One compiled unit: its PTX for every architecture that it has, parsed when something of it is first used.
struct Module {
  std::vector<std::string> ptx;
  bool parsed = false;
  std::map<std::string, Kernel*> kernels;
  std::map<std::string, u64> variables;
};

struct Function {
  Module* module;
  std::string name;
  Kernel* kernel = nullptr;
  int max_dynamic_shared = -1;  // cudaFuncSetAttribute; -1: the default with the static part
  bool non_portable_cluster = false;
};

struct Variable {
  Module* module;
  std::string name;
  size_t bytes;
};

// Units register before main and in link order: all state lives behind a function.
struct Runtime {
  std::vector<Module*> modules;
  std::unordered_map<void const*, Function> functions;
  std::unordered_map<void const*, Variable> variables;
  std::recursive_mutex lock;
  std::string last_report;  // of the launch that failed last
  u64 executed = 0;         // warp instructions, of all launches
};
Runtime& runtime();

void parse(Module& module);
Function* find_function(void const* handle);  // null: unknown, or without PTX that fits

cudaError_t remember(cudaError_t error);  // for cudaGetLastError
cudaError_t refuse(cudaError_t error, std::string const& why);

}  // namespace emu
