// The kernel that makes a plan (schedule.cuh): every CTA finds one cut.
#include <cuda_runtime_api.h>

#include "indexer_logits/schedule.cuh"

namespace dsa {
namespace {

constexpr int kWarps = 4;

// (The parameter is not __grid_constant__: nvcc 13.0 would take `ranges` for a part of it, whose last member differs.)
__global__ void __launch_bounds__(32 * kWarps) plan_paged_indexer_logits(IndexerPlanParams const p) {
  __shared__ indexer::LineSums<kWarps> sums;
  indexer::PagedRanges const ranges = {
      p.context_lens, p.lens_stride_batch,         p.lens_stride_token, p.lens_per_token,
      p.tokens,       INT_MAX - indexer::kTileKeys};
  indexer::Blocks<indexer::PagedRanges> const blocks(ranges, p.batch, p.tokens, p.tokens);
  indexer::add_up(blocks, sums);
  __syncthreads();
  if (threadIdx.x >= 32) return;
  int const part = blockIdx.x;
  indexer::Cut cut = indexer::find_part(blocks, sums, part, p.parts).begin;
  if (part == 0) cut = {0, 0};  // also if the first requests have no keys yet
  if (threadIdx.x != 0) return;
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
