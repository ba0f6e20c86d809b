// A row of scores becomes the positions of its k best.
//
//   sample (rows that the list cannot hold)  -> a threshold that about 1.4 k candidates are above
//   collect: one reading of the row          -> the list, in shared memory
//   select: a histogram of the list          -> a bitmap of the chosen positions
//   emit: counts of its bits                 -> positions in order, mapped
//
// A CTA, or where rows are few a cluster of CTAs, takes a row. Every CTA of a cluster samples the whole row, and
// collects its part; the leading one does the rest. Arrival order decides where in the list a candidate stands, and
// nothing else.
#pragma once

#include "collect.cuh"
#include "emit.cuh"
#include "sample.cuh"
#include "team.cuh"

namespace dsa::topk {

template <class Format, bool kCluster>
__global__ void __launch_bounds__(kThreads, kCtasPerMultiprocessor) topk_kernel(__grid_constant__ TopkParams const p) {
  extern __shared__ __align__(16) uint8_t memory[];
  SharedStorage& s = *reinterpret_cast<SharedStorage*>(memory);
  Team<kCluster> const team;
  int const index = int(blockIdx.x / team.size());
  Row<Format> const row(p, index);
  if (row.length == 0) {
    if (team.rank() == 0) emit_nothing(p, index);
    return;
  }

  team.start(s);
  bool sampled = row.length > kCapacity;
  Sample<Format> sample;
  if (sampled) sample.load(row, p.k);
  fetch(s, row, vector_of(team.rank(), 0));
  if (threadIdx.x == 0) {
    s.bins[kBins] = 0;
    s.greatest = 0;
  }
#pragma unroll
  for (int i = 0; i < kBins / 4; i += kThreads) reinterpret_cast<uint4*>(s.bins)[i + threadIdx.x] = {0, 0, 0, 0};
  __syncthreads();

  float threshold = kNothing;
  if (sampled) threshold = sample.threshold(s);
  sampled = threshold > kNothing;  // else it asks for every candidate, as when few are more than -inf
  uint32_t const greatest = s.greatest;
  collect_at_once(s, row, team.rank(), team.size(), threshold);
  __syncthreads();
  if (!team.gather(s)) return;

  Order<Format> const order(row.length);
  bool const full = s.listed > kCapacity;
  if (full || (sampled && s.listed < uint32_t(p.k))) {  // the sample has misled
    sampled = sampled && full;
    __syncthreads();
    if (threadIdx.x == 0) {
      s.listed = 0;
      s.full_in_round = 0;
    }
    __syncthreads();
    collect_in_rounds(s, row, p.k, sampled ? order.least(threshold) : order.least());
  }

  Bins bins;
  if (sampled) {
    bins.base = key_of(__float_as_uint(threshold));
    bins.shift = max(bit_width(greatest - bins.base) - kDigitBits, 0);
  }
  uint64_t const cut = select(s, p.k, order, bins);
  emit(s, p, index, row.length, cut, order);
}

}  // namespace dsa::topk
