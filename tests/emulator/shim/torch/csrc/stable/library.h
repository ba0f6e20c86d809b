// In front of torch's header of this name: what an op.cpp registers for CUDA tensors is registered for CPU tensors.
#pragma once

#include_next <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(library, key, m) DSA_EMULATOR_IMPL_##key(library, m)
#define DSA_EMULATOR_IMPL_CUDA(library, m) _STABLE_TORCH_LIBRARY_IMPL(library, CPU, m, C10_UID)
// Needs no device: dsa_ext._C has registered it. The functions are compiled, and dropped.
#define DSA_EMULATOR_IMPL_CompositeExplicitAutograd(library, m)        \
  [[maybe_unused]] static void DSA_EMULATOR_NAME(unused_registration_, \
                                                 C10_UID)(torch::stable::detail::StableLibrary & m)
#define DSA_EMULATOR_NAME(a, b) DSA_EMULATOR_NAME_(a, b)
#define DSA_EMULATOR_NAME_(a, b) a##b
