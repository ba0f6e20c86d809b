// What the runtime says about the device, errors, streams and events. One device, everything in order, no time.
#include <cmath>
#include <cstdio>

#include "runtime.h"

namespace emu {
namespace {
thread_local cudaError_t last_error = cudaSuccess;
}

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace emu

extern "C" {

cudaError_t cudaGetLastError() {
  cudaError_t const error = emu::last_error;
  emu::last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return emu::last_error; }
char const* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess              ? "cudaSuccess"
         : error == cudaErrorLaunchFailure ? "cudaErrorLaunchFailure"
                                           : "cudaError";
}
// The emulator's own report, so that it comes up in Python's exception.
char const* cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  std::string const& report = emu::runtime().last_report;
  return report.empty() ? cudaGetErrorName(error) : report.c_str();
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
// CPU tensors have device index -1.
cudaError_t cudaSetDevice(int device) { return device > 0 ? emu::remember(cudaErrorInvalidDevice) : cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  int const arch = emu::settings.arch;
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = arch / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = arch % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = int(emu::multiprocessors()); break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = emu::kSharedDefault; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = emu::kSharedOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = emu::kSharedMultiprocessor; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = emu::kSharedReserved; break;
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: *value = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *value = 64; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = 65536; break;
    case cudaDevAttrClusterLaunch:
    case cudaDevAttrUnifiedAddressing: *value = 1; break;
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrIntegrated: *value = 0; break;
    default: return emu::refuse(cudaErrorInvalidValue, "a device attribute that runtime_device.cpp does not list");
  }
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
}
