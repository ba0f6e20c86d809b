// The kernel that makes a plan (plan.h): one CTA, which walks over the queries' lengths twice.
#include <cuda_runtime_api.h>

#include "sparse_mla_decode/plan.h"

namespace dsa {
namespace {

constexpr int kPlanThreads = 1024;

__device__ int query_units(DecodePlanParams const& p, int query) {
  int length[2];
  for (int s = 0; s < 2; ++s) {
    int const topk = p.shape.topk[s];
    int64_t const at = query / p.s_q * p.length_stride_batch[s] + query % p.s_q * p.length_stride_token[s];
    length[s] = p.length[s] == nullptr ? topk : min(max(p.length[s][at], 0), topk);
  }
  return p.shape.units(length[0], length[1]);
}

// Sums of all threads up to each one's own, and of all.
__device__ int64_t inclusive_sum(int64_t x, int64_t& total) {
  __shared__ int64_t sums[kPlanThreads / 32];
  int const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int d = 1; d < 32; d *= 2) {
    int64_t const other = __shfl_up_sync(~0u, x, d);
    if (lane >= d) x += other;
  }
  __syncthreads();  // the call before has read sums
  if (lane == 31) sums[warp] = x;
  __syncthreads();
  int64_t before = 0;
  total = 0;
  for (int w = 0; w < kPlanThreads / 32; ++w) {
    if (w < warp) before += sums[w];
    total += sums[w];
  }
  return x + before;
}

__global__ void __launch_bounds__(kPlanThreads) plan_sparse_mla_decode(__grid_constant__ DecodePlanParams const p) {
  int const queries = p.shape.queries, thread = threadIdx.x, chunk = p.shape.chunk_units();
  // Thread t has queries [first, last).
  int const each = (queries + kPlanThreads - 1) / kPlanThreads;
  int const first = min(int64_t(thread) * each, int64_t(queries)), last = min(first + each, queries);
  int64_t mine = 0, all, differ = 0, uneven;
  int const some = queries > 0 ? query_units(p, 0) : 1;
  for (int q = first; q < last; ++q) {
    int const units = query_units(p, q);
    mine += units;
    differ += units != some;
  }
  inclusive_sum(differ, uneven);
  int64_t const end = inclusive_sum(mine, all), begin = end - mine;

  int32_t* const cuts = p.plan + kPlanHeader;
  if (uneven == 0) {
    EvenCuts const even(p.parts, queries, some);
    for (int part = thread; part <= p.parts; part += kPlanThreads) {
      DecodeCut const cut = even[part];
      cuts[2 * part] = cut.query;
      cuts[2 * part + 1] = p.batch_invariant ? cut.unit / chunk * chunk : cut.unit;
    }
  } else {
    // Each thread makes the cuts that lie among its queries.
    int const used = int(min(int64_t(p.parts), all));
    int part = int(begin * used / all);
    while (unit_before(part, p.parts, all) < begin) ++part;
    int64_t at = begin;
    for (int q = first; q < last; ++q) {
      int const units = query_units(p, q);
      for (; part < used && unit_before(part, p.parts, all) < at + units; ++part) {
        int const unit = int(unit_before(part, p.parts, all) - at);
        cuts[2 * part] = q;
        cuts[2 * part + 1] = p.batch_invariant ? unit / chunk * chunk : unit;
      }
      at += units;
    }
    for (int i = used + thread; i <= p.parts; i += kPlanThreads) {
      cuts[2 * i] = queries;
      cuts[2 * i + 1] = 0;
    }
  }
  if (thread == 0) {
    p.plan[0] = queries;
    p.plan[1] = p.parts;
    p.plan[2] = p.shape.most_units();
    if (p.batch_invariant) p.plan[plan_elements(p.parts)] = 1;  // the element that tells op.cpp
  }
}

}  // namespace

int launch_decode_plan(DecodePlanParams const& params, void* stream) {
  plan_sparse_mla_decode<<<1, kPlanThreads, 0, static_cast<cudaStream_t>(stream)>>>(params);
  return cudaGetLastError();
}

}  // namespace dsa
