// A row of scores becomes the positions of its k best.
//
//   sample (rows that the list cannot hold)  -> a threshold that about 1.5 k candidates are above
//   collect: one reading of the row          -> the list, in shared memory
//   find_cut: radix selection from the list  -> the rank from which on there are exactly k
//   emit: through a bitmap                   -> positions in order, mapped
//
// A CTA, or where rows are few a cluster of CTAs, takes a row; all of a cluster's CTAs collect, into the list of the
// leading one, which does the rest. Arrival order decides where in the list a candidate stands, and nothing else.
#pragma once

#include "collect.cuh"
#include "emit.cuh"
#include "sample.cuh"

namespace dsa::topk {

template <class Format, bool kCluster>
__global__ void __launch_bounds__(kThreads, kCtasPerMultiprocessor) topk_kernel(__grid_constant__ TopkParams const p) {
  extern __shared__ __align__(16) uint8_t memory[];
  SharedStorage& s = *reinterpret_cast<SharedStorage*>(memory);
  Team<kCluster> const team;
  int const index = int(blockIdx.x / team.size());
  Row<Format> const row(p, index);
  if (row.length == 0) {
    if (team.leads()) emit_nothing(p, index);
    return;
  }
  Collector<Format, kCluster> collector{team, s, team.of(s, 0), uint32_t(p.k)};

  bool sampled = row.length > kCapacity;
  Sample<Format> sample;
  if (sampled && team.leads()) sample.load(row);
  collector.start(row);
  for (int i = threadIdx.x; i < kBins; i += kThreads) s.bins[i] = 0;
  if (threadIdx.x == 0) {
    s.listed = 0;
    s.full_in_round = 0;
    s.row = row;
  }
  team.sync();

  float threshold = kNothing;
  if (sampled) {
    if (team.leads()) {
      threshold = sample.threshold(s, row.length, p.k);
      if (threadIdx.x < team.size()) team.of(s, threadIdx.x).threshold = threshold;
    }
    if (kCluster) {
      team.sync();
      threshold = s.threshold;
    }
    sampled = threshold > kNothing;  // else it asks for every candidate, as when few are more than -inf
  }

  while (true) {
    collector.run(threshold);
    if (!sampled || collector.leader.listed >= uint32_t(p.k)) break;
    // The sample has misled.
    team.sync();
    if (team.leads() && threadIdx.x == 0) s.listed = 0;
    sampled = false;
    threshold = kNothing;
    collector.start(Row<Format>(s.row));
    team.sync();
  }

  if (!team.leads()) return;
  Order<Format> const order(s.row.length);
  uint64_t const cut = find_cut(s, p.k, order);
  emit(s, p, index, s.row.length, cut, order);
  if (kCluster) team.sync();  // the others have read `listed`, or have left
}

}  // namespace dsa::topk
