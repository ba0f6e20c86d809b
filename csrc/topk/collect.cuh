// One reading of a row, whose result is a list that holds its k best and little else.
//
// Rounds: every thread of the row's CTAs looks at kVectors vectors, which it has asked for in the round before, and
// puts what lies above the threshold into the leading CTA's list, in any order. If the list has no room for some
// warp's, all wait while the leader keeps the k best and raises the threshold to the worst of these; then those warps
// try again. So no distribution of scores, or of their places in the row, makes the list overflow.
//
// Rounds go forward in the row: what a later round finds equal to the threshold loses against the k of the list, which
// have lower positions. That is why `score > threshold` is right there, while a warp that tries again compares ranks.
#pragma once

#include "row.cuh"
#include "select.cuh"
#include "team.cuh"

namespace dsa::topk {

struct Above {
  float threshold;
  __device__ bool operator()(uint32_t value, uint32_t) const { return __uint_as_float(value) > threshold; }
};

template <class Format>
struct NotBelow {
  uint64_t cut;
  Order<Format> order;
  __device__ bool operator()(uint32_t value, uint32_t position) const { return order.rank(value, position) >= cut; }
};

template <class Format, bool kCluster>
struct Collector {
  Team<kCluster> const& team;
  SharedStorage& own;
  SharedStorage& leader;  // the leading CTA's
  uint32_t k;
  uint32_t round = 1;

  // A thread's first vector of what the team looks at from vector `begin` on.
  __device__ __forceinline__ int vector(int begin) const {
    int const warp = int(team.rank()) * kWarps + int(threadIdx.x) / 32;
    return begin + warp * (32 * kVectors) + int(threadIdx.x) % 32;
  }

  // Before run(): what it looks at first.
  __device__ __forceinline__ void start(Row<Format> const& row) const { fetch(own, row, vector(0)); }

  // Ends with a barrier of the team.
  __device__ __forceinline__ void run(float threshold) {
    int const step = int(team.size()) * (kThreads * kVectors), end = row().vectors();
#pragma unroll 1
    for (int begin = 0; begin < end; begin += step) {
      int done = kVectors;  // of this step's
      {
        Batch<Format> const batch = fetched<Format>(own);
        if (begin + step < end) fetch(own, row(), vector(begin + step));
        if (!put(batch, uint32_t(row().position(vector(begin))), Above{threshold})) done = 0;
      }
      if (end_round()) continue;
      do {
        make_room();
        threshold = own.threshold;
        put_again(vector(begin), done);
      } while (!end_round());
    }
  }

 private:
  __device__ __forceinline__ Row<Format> row() const { return Row<Format>(own.row); }

  // Whether everything found room. All threads of the team agree: a warp that is ahead writes a later round's number.
  __device__ __forceinline__ bool end_round() {
    team.sync();
    return own.full_in_round != round++;
  }

  __device__ __forceinline__ void make_room() {
    if (team.leads()) {
      Order<Format> const order(own.row.length);
      uint64_t const cut = keep_best(own, k, order);
      if (threadIdx.x < team.size()) {
        SharedStorage& s = team.of(own, threadIdx.x);
        s.cut = cut;
        s.threshold = order.score(cut);
      }
    }
    team.sync();
  }

  // Vector for vector, from memory: rare, and by now the next step's have their place.
  __device__ __forceinline__ void put_again(int first, int& done) const {
    NotBelow<Format> const accepts{own.cut, Order<Format>(own.row.length)};
#pragma unroll 1
    for (; done < kVectors; ++done) {
      Vectors<Format, 1> one;
      int const vector = first + done * one.kApart;
      one.v[0] = row().load_part(vector);
      if (!put(one, uint32_t(row().position(vector)), accepts)) return;
    }
  }

  // A warp's candidates; false if the list has no room for them.
  template <class Some, class Accepts>
  __device__ __forceinline__ bool put(Some const& batch, uint32_t position, Accepts const& accepts) const {
    int const lane = threadIdx.x % 32;
    uint32_t mine = 0;
    batch.for_each(position, [&](uint32_t value, uint32_t at) { mine += accepts(value, at); });
    uint32_t const end = warp_inclusive_sum(mine), all = __shfl_sync(~0u, end, 31);
    if (all == 0) return true;
    uint32_t place = 0;
    if (lane == 31) place = atomicAdd(&leader.listed, all);
    place = __shfl_sync(~0u, place, 31);
    if (place + all > kCapacity) {
      for (uint32_t i = place + lane; i < kCapacity; i += 32) leader.values[i] = __float_as_uint(kNothing);
      if (lane < team.size()) team.of(own, lane).full_in_round = round;
      return false;
    }
    place += end - mine;
    batch.for_each(position, [&](uint32_t value, uint32_t at) {
      if (!accepts(value, at)) return;
      leader.values[place] = value;
      leader.positions[place] = at;
      ++place;
    });
    return true;
  }
};

}  // namespace dsa::topk
