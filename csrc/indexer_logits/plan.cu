// The kernel that makes a plan (schedule.cuh): every CTA finds one cut.
#include <cuda_runtime_api.h>

#include "indexer_logits/start.cuh"

namespace dsa {
namespace {

constexpr int kWarps = 4;

// (The parameter is not __grid_constant__: nvcc 13.0 would take `ranges` for a part of it, whose last member differs.)
__global__ void __launch_bounds__(32 * kWarps) plan_paged_indexer_logits(IndexerPlanParams const p) {
  __shared__ uint32_t sums[kWarps];
  __shared__ indexer::Part of_part;
  // So many that the line is shorter than 2^32.
  int64_t const most = int64_t(UINT_MAX / uint32_t(p.batch) - 2) * indexer::kTileKeys;
  indexer::PagedRanges const ranges = {p.context_lens,
                                       p.lens_stride_batch,
                                       p.lens_stride_token,
                                       p.lens_per_token,
                                       p.tokens,
                                       int(min(most, int64_t(INT_MAX - indexer::kTileKeys)))};
  indexer::Blocks<indexer::PagedRanges> const blocks(ranges, p.batch, p.tokens, p.tokens);
  int const part = blockIdx.x;
  indexer::find_cuts(blocks, part, indexer::Divisor(p.parts), sums, of_part);
  __syncthreads();
  if (threadIdx.x != 0) return;
  indexer::Cut const cut = of_part.begin;
  p.plan[kIndexerPlanHeader + 2 * part] = cut.block;
  p.plan[kIndexerPlanHeader + 2 * part + 1] = cut.tile;
  if (part != 0) return;
  p.plan[0] = p.batch;
  p.plan[1] = p.parts;
}

}  // namespace

int launch_indexer_plan(IndexerPlanParams const& p, void* stream) {
  plan_paged_indexer_logits<<<p.parts + 1, 32 * kWarps, 0, static_cast<cudaStream_t>(stream)>>>(p);
  return cudaGetLastError();
}

}  // namespace dsa
