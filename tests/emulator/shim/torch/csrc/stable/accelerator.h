// In front of torch's header of this name: the emulated device is always the current one.
#pragma once

#include_next <torch/csrc/stable/accelerator.h>

namespace torch::stable::accelerator {

struct NoDeviceGuard {
  explicit NoDeviceGuard(int32_t) {}
};

}  // namespace torch::stable::accelerator

#define DeviceGuard NoDeviceGuard
