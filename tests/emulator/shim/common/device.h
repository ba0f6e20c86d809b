// In front of csrc/common/device.h: there is always a current stream, and it needs no torch with CUDA.
#pragma once

#define current_stream current_stream_of_torch
#include_next "common/device.h"
#undef current_stream

namespace dsa {

inline bool current_stream(int32_t, void** stream) {
  *stream = nullptr;
  return true;
}

}  // namespace dsa
