// Host side that the decode kernels on Hopper share.
#pragma once

#include <algorithm>
#include <atomic>

#include "attention/sm90/tensor_maps.h"
#include "common/launch.h"
#include "sparse_mla_decode/sm90/work.cuh"

namespace dsa::sm90 {

inline DecodeShape shape_of(SparseMlaDecodeParams const& p) {
  return {p.batch * p.s_q, p.h_q, {p.keys[0].topk, p.keys[1].topk}};
}
// Teams (team.cuh) take few heads as if they were 64. They need no plan, whose parts would be others.
inline DecodeShape team_shape(SparseMlaDecodeParams const& p) {
  DecodeShape shape = shape_of(p);
  if (shape.few_heads()) shape.h_q = 64;
  return shape;
}

// CTAs that share a query's keys, and teams that share the value columns.
struct Team {
  int ctas = 0, column_ctas = 1;

  explicit operator bool() const { return ctas > 0; }
};

// What a CTA of a kernel has.
struct CtaShape {
  int threads, shared_bytes;
};

template <class Kernel>
cudaError_t allow(Kernel* kernel, int shared_bytes, int cluster) {
  if (cluster > 8)
    if (cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1)) return e;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
}

// How many clusters of so many CTAs of the kernel can run at once.
template <class Kernel>
cudaError_t max_clusters(Kernel* kernel, int size, CtaShape const& cta, int* clusters) {
  if (cudaError_t e = allow(kernel, cta.shared_bytes, size)) return e;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(size), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(size));
  config.blockDim = dim3(unsigned(cta.threads));
  config.dynamicSmemBytes = size_t(cta.shared_bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaOccupancyMaxActiveClusters(clusters, kernel, &config);
}

// How many such teams a device can run at once. It is asked once; one that knows no such clusters runs none.
class MostTeams {
 public:
  template <class Kernel>
  int operator()(Kernel* kernel, int ctas, CtaShape const& cta, int device) {
    if (device >= kDevices) return 0;
    std::atomic<int>& known = known_[device][ctas];
    if (known == 0) {
      int teams = 0;
      if (max_clusters(kernel, ctas, cta, &teams)) static_cast<void>(cudaGetLastError());
      known = teams + 1;
    }
    return known - 1;
  }

 private:
  static constexpr int kDevices = 64;
  std::atomic<int> known_[kDevices][kLargestTeam + 1]{};  // and one more, so that 0 is not known yet
};

// Starts a persistent kernel: a CTA for each head block of a part, or for two parts where there are few heads; or, with
// a team, for each head block of a query as many CTAs as it has.
template <class Kernel>
cudaError_t launch_decode(Kernel* kernel, CtaShape const& cta, int tile_heads, int out_heads,
                          SparseMlaDecodeParams const& p, DecodeShape const& shape, Team const& team,
                          cudaStream_t stream) {
  int device = 0, sms = 0;
  if (cudaError_t e = cudaGetDevice(&device)) return e;
  if (cudaError_t e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device)) return e;
  auto const pages = [&](int i) { return cutlass::FastDivmod(std::max(p.keys[i].cache.layout.page_size, 1)); };
  int const cluster = team ? team.ctas : 1;
  int const members = shape.few_heads() ? 2 * cluster : cluster,
            vectors = shape.few_heads() ? tile_heads : 16 / team.column_ctas,
            share_vectors = (vectors + members - 1) / members;
  DecodeParams const params{p,
                            shape,
                            shape.parts(sms),
                            cluster,
                            team.column_ctas,
                            {pages(0), pages(1)},
                            cluster,
                            shape.head_blocks(),
                            std::max(p.s_q, 1),
                            share_vectors};
  TensorMaps maps;
  if (cudaError_t e = encode_maps(maps, p, tile_heads, out_heads)) return e;
  if (cudaError_t e = allow(kernel, cta.shared_bytes, cluster)) return e;
  if (team) {
    int const ctas = shape.queries * shape.head_blocks() * team.column_ctas * cluster;
    return launch_early(kernel, {ctas, cta.threads, cluster}, cta.shared_bytes, stream, params, maps);
  }
  int const ctas = shape.few_heads() ? params.parts / 2 : params.parts * shape.head_blocks();
  if (cudaError_t e = launch_early(kernel, {ctas, cta.threads}, cta.shared_bytes, stream, params, maps)) return e;
  return cudaError_t(launch_decode_combine(p, stream));
}

}  // namespace dsa::sm90
