// The launcher: how many CTAs take a row.
// spills: 16 bytes, one kernel (clusters, bf16), on sm_100a alone
#include <atomic>

#include "kernel.cuh"

namespace dsa {
namespace {

using namespace topk;

using Kernel = void(TopkParams);

template <bool kCluster>
Kernel* kernel_for(bool bf16) {
  return bf16 ? topk_kernel<Bf16, kCluster> : topk_kernel<Fp32, kCluster>;
}

// One where rows or columns do: meeting in a cluster takes longer than most rows (docs/design-notes.md).
int ctas_per_row(TopkParams const& p, int multiprocessors) {
  int ctas = 1;
  while (ctas < kMaxCtasPerRow && 2 * ctas * int64_t(p.rows) <= multiprocessors / 2 &&
         p.columns >= 2 * ctas * int64_t(kColumnsPerCta))
    ctas *= 2;
  return ctas < kMinCtasPerRow ? 1 : ctas;
}

// Whether the device takes clusters of more than 8 CTAs (parts of a GPU may not). Asked once.
bool takes_large_clusters(int device, void const* kernel, cudaLaunchConfig_t const& config) {
  enum : int8_t { kUnknown, kNo, kYes };
  constexpr int kDevices = 64;
  static std::atomic<int8_t> known[kDevices];
  if (device < kDevices && known[device] != kUnknown) return known[device] == kYes;
  int clusters = 0;
  bool const yes = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess && clusters > 0;
  if (!yes) cudaGetLastError();
  if (device < kDevices) known[device] = yes ? kYes : kNo;
  return yes;
}

}  // namespace

int launch_topk(TopkParams const& p, void* stream) {
  int device = 0, multiprocessors = 0;
  if (cudaError_t e = cudaGetDevice(&device)) return e;
  if (cudaError_t e = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) return e;

  int ctas = ctas_per_row(p, multiprocessors);
  Kernel* const kernel = ctas == 1 ? kernel_for<false>(p.bf16) : kernel_for<true>(p.bf16);
  auto const* const handle = reinterpret_cast<void const*>(kernel);
  constexpr int kBytes = sizeof(SharedStorage);
  if (cudaError_t e = cudaFuncSetAttribute(handle, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes)) return e;

  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kBytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cluster;
  config.numAttrs = ctas > 1;
  auto const use = [&](int n) {
    ctas = n;
    cluster.val.clusterDim = {unsigned(n), 1, 1};
    config.gridDim = dim3(unsigned(p.rows) * unsigned(n));
  };
  use(ctas);
  if (ctas > 8) {
    if (cudaError_t e = cudaFuncSetAttribute(handle, cudaFuncAttributeNonPortableClusterSizeAllowed, 1)) return e;
    if (!takes_large_clusters(device, handle, config)) use(8);
  }
  return cudaLaunchKernelEx(&config, kernel, p);
}

}  // namespace dsa
