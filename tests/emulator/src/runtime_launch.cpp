// Launches, with the device's refusals, and the attributes of kernels.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "memory.h"
#include "report.h"
#include "runtime.h"

namespace emu {
namespace {

// Null, or why the device would not take the launch.
cudaError_t check_launch(Function const& f, dim3 grid, dim3 block, dim3 cluster, size_t dynamic,
                         bool explicit_cluster) {
  Kernel const& k = *f.kernel;
  constexpr unsigned kMaxGridYZ = 65535, kMaxThreads = 1024;
  u64 const threads = u64(block.x) * block.y * block.z, ctas = u64(cluster.x) * cluster.y * cluster.z;
  u32 const c[3] = {cluster.x, cluster.y, cluster.z};
  if (explicit_cluster && k.cluster[0] && !std::equal(c, c + 3, k.cluster))
    return refuse(cudaErrorInvalidClusterSize, "the cluster differs from the kernel's __cluster_dims__");
  if (threads == 0 || threads > kMaxThreads || !grid.x || !grid.y || !grid.z || grid.y > kMaxGridYZ ||
      grid.z > kMaxGridYZ)
    return refuse(cudaErrorInvalidConfiguration, "grid or block out of range");
  if (k.max_threads && threads > k.max_threads)
    return refuse(cudaErrorInvalidValue, "more threads than the kernel's __launch_bounds__");
  if (k.required_threads && threads != k.required_threads)
    return refuse(cudaErrorInvalidValue, "another number of threads than the kernel requires");
  if (ctas == 0 || grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z)
    return refuse(cudaErrorInvalidClusterSize, "the grid is not a multiple of the cluster");
  if (ctas > (f.non_portable_cluster ? 16 : 8))
    return refuse(cudaErrorInvalidClusterSize, "more than 8 CTAs in a cluster (16 with the non-portable attribute)");
  bool const too_much = f.max_dynamic_shared < 0 ? dynamic + k.static_shared > size_t(kSharedDefault)
                                                 : dynamic > size_t(f.max_dynamic_shared);
  if (too_much) return refuse(cudaErrorInvalidValue, "more dynamic shared memory than the kernel's attribute allows");
  return cudaSuccess;
}

cudaError_t launch(void const* handle, dim3 grid, dim3 block, dim3 const* explicit_cluster, size_t dynamic,
                   void** arguments) {
  std::lock_guard const guard(runtime().lock);
  try {
    Function* const f = find_function(handle);
    if (f == nullptr) return refuse(cudaErrorNoKernelImageForDevice, "no PTX for this kernel and architecture");
    Kernel& k = *f->kernel;
    dim3 cluster = k.cluster[0] ? dim3(k.cluster[0], k.cluster[1], k.cluster[2]) : dim3(1, 1, 1);
    if (explicit_cluster != nullptr) cluster = *explicit_cluster;
    if (cudaError_t const e = check_launch(*f, grid, block, cluster, dynamic, explicit_cluster != nullptr)) return e;

    constexpr size_t kAlign = 128;
    std::vector<u8> buffer(k.parameter_bytes + kAlign);
    u8* const parameters = buffer.data() + (kAlign - reinterpret_cast<u64>(buffer.data()) % kAlign) % kAlign;
    for (size_t n = 0; n < k.parameters.size(); ++n)
      memcpy(parameters + k.parameters[n].offset, arguments[n], k.parameters[n].size);
    struct Registered {  // kernels take the address of parameters, tensor maps for instance
      u8* memory;
      Registered(u8* m, size_t bytes) : memory(m) { allocations().add(m, bytes); }
      ~Registered() { allocations().remove(memory); }
    } const registered(parameters, k.parameter_bytes);

    Launch l{.kernel = &k,
             .grid = {grid.x, grid.y, grid.z},
             .block = {block.x, block.y, block.z},
             .cluster = {cluster.x, cluster.y, cluster.z},
             .dynamic_shared = u32(dynamic),
             .sms = multiprocessors(),
             .parameters = parameters};
    runtime().executed += run_launch(l);
  } catch (Fault const& f) {
    runtime().last_report = f.what();
    return remember(cudaErrorLaunchFailure);
  }
  return cudaSuccess;
}

thread_local struct {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
} pushed;

// Registers are not modelled.
int ctas_per_multiprocessor(Kernel const& k, int threads, size_t dynamic) {
  if (threads < 1 || threads > 1024) return 0;
  size_t const shared = k.static_shared + dynamic + kSharedReserved, by_shared = kSharedMultiprocessor / shared;
  return int(std::min({size_t(32), size_t(2048 / ((threads + 31) / 32 * 32)), by_shared}));
}

}  // namespace

cudaError_t refuse(cudaError_t error, std::string const& why) {
  runtime().last_report = "emulator: launch refused: " + why;
  return remember(error);
}

}  // namespace emu

extern "C" {

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  emu::pushed = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = emu::pushed.grid;
  *block = emu::pushed.block;
  *shared = emu::pushed.shared;
  *static_cast<cudaStream_t*>(stream) = emu::pushed.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, void const* handle) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(handle));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                               cudaStream_t) {
  return emu::launch(kernel, grid, block, nullptr, shared, arguments);
}
cudaError_t cudaLaunchKernel(void const* handle, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t) {
  return emu::launch(handle, grid, block, nullptr, shared, arguments);
}
cudaError_t cudaLaunchKernelExC(cudaLaunchConfig_t const* config, void const* handle, void** arguments) {
  dim3 cluster;
  bool given = false;
  for (unsigned n = 0; n < config->numAttrs; ++n) {
    cudaLaunchAttribute const& a = config->attrs[n];
    if (a.id == cudaLaunchAttributeClusterDimension) {
      cluster = dim3(a.val.clusterDim.x, a.val.clusterDim.y, a.val.clusterDim.z);
      given = true;
    } else if (a.id == cudaLaunchAttributeCooperative && a.val.cooperative) {
      return emu::refuse(cudaErrorNotSupported, "cooperative launches are not emulated: clusters run one by one");
    }
  }
  return emu::launch(handle, config->gridDim, config->blockDim, given ? &cluster : nullptr, config->dynamicSmemBytes,
                     arguments);
}

cudaError_t cudaFuncSetAttribute(void const* handle, cudaFuncAttribute attribute, int value) {
  std::lock_guard const guard(emu::runtime().lock);
  try {
    emu::Function* const f = emu::find_function(handle);
    if (f == nullptr) return emu::remember(cudaErrorInvalidDeviceFunction);
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
      if (value < 0 || value + int(f->kernel->static_shared) > emu::kSharedOptin)
        return emu::remember(cudaErrorInvalidValue);
      f->max_dynamic_shared = value;
    } else if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
      f->non_portable_cluster = value;
    }
    return cudaSuccess;
  } catch (emu::Fault const& fault) {  // of the parser
    emu::runtime().last_report = fault.what();
    return emu::remember(cudaErrorLaunchFailure);
  }
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, void const* handle) {
  emu::Function const* const f = emu::find_function(handle);
  if (f == nullptr) return emu::remember(cudaErrorInvalidDeviceFunction);
  emu::Kernel const& k = *f->kernel;
  *a = {};
  a->sharedSizeBytes = k.static_shared;
  a->maxThreadsPerBlock = k.max_threads ? int(k.max_threads) : 1024;
  a->ptxVersion = a->binaryVersion = k.arch;
  a->maxDynamicSharedSizeBytes =
      f->max_dynamic_shared < 0 ? emu::kSharedDefault - int(k.static_shared) : f->max_dynamic_shared;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* ctas, void const* handle, int threads,
                                                                   size_t dynamic, unsigned) {
  emu::Function const* const f = emu::find_function(handle);
  if (f == nullptr) return emu::remember(cudaErrorInvalidDeviceFunction);
  *ctas = emu::ctas_per_multiprocessor(*f->kernel, threads, dynamic);
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void const* handle, cudaLaunchConfig_t const* config) {
  emu::Function const* const f = emu::find_function(handle);
  if (f == nullptr) return emu::remember(cudaErrorInvalidDeviceFunction);
  unsigned ctas = 1;
  for (unsigned n = 0; n < config->numAttrs; ++n)
    if (config->attrs[n].id == cudaLaunchAttributeClusterDimension) ctas = config->attrs[n].val.clusterDim.x;
  int const threads = int(config->blockDim.x);
  int const each = emu::ctas_per_multiprocessor(*f->kernel, threads, config->dynamicSmemBytes);
  // Of the whole device, also where fewer multiprocessors are set: callers may ask once for all of a process's tests.
  unsigned const most = std::min(f->non_portable_cluster ? 16u : 8u, emu::multiprocessors());
  *clusters = ctas > most ? 0 : each * int(emu::device_multiprocessors()) / int(ctas);
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* ctas, void const* handle, int threads, size_t dynamic) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(ctas, handle, threads, dynamic, 0);
}
}
