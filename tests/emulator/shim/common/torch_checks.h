// In front of csrc/common/torch_checks.h: an op asks whether tensors are on the device, and here that is the CPU.
#pragma once

#include <torch/csrc/stable/tensor.h>

#define is_cuda is_cpu
#include_next "common/torch_checks.h"
