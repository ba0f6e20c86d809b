// One reading of a row, whose result is a list that holds its k best and little else.
//
// At first in the hope of room: every thread of the row's CTAs looks at kVectors vectors, which it has asked for in the
// step before, and its warp puts what lies above the threshold into its CTA's list, in any order, and waits for nobody.
//
// Rounds, if the list was too small: after each step all wait, and if some warp's candidates have found no room, the k
// best are kept and the threshold rises to the worst of these; then those warps try again. So no distribution of
// scores, or of their places in the row, makes the list overflow. Rounds go forward in the row: what a later round
// finds equal to the threshold loses against the k of the list, which have lower positions. That is why `score >
// threshold` is right there, while a warp that tries again compares ranks.
#pragma once

#include "row.cuh"
#include "select.cuh"

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

// A warp's candidates go into the list, without gaps; false if it has no room for them.
template <class Format, int kCount, class Accepts>
__device__ __forceinline__ bool put(SharedStorage& s, Vectors<Format, kCount> const& batch, uint32_t position,
                                    Accepts const& accepts) {
  int const lane = threadIdx.x % 32;
  uint32_t accepted = 0;
  batch.for_each(position, [&](uint32_t value, uint32_t at, int i) { accepted |= uint32_t(accepts(value, at)) << i; });
  uint32_t const mine = __popc(accepted), end = warp_inclusive_sum(mine), all = __shfl_sync(~0u, end, 31);
  if (all == 0) return true;
  uint32_t place = 0;
  if (lane == 31) place = atomicAdd(&s.listed, all);
  place = __shfl_sync(~0u, place, 31);
  if (place + all > kCapacity) {
#pragma unroll 1
    for (uint32_t i = place + lane; i < kCapacity; i += 32) s.list[i].value = __float_as_uint(kNothing);
    return false;
  }
  Candidate* to = s.list + (place + end - mine);
  batch.for_each(position, [&](uint32_t value, uint32_t at, int i) {
    if (accepted >> i & 1) *to++ = {value, at};
  });
  return true;
}

// The same for what lies above a threshold, in as few instructions as can be: there are ten a score, and they are what
// most rows take their time for.
template <class Format>
__device__ __forceinline__ bool put_above(SharedStorage& s, Batch<Format> batch, uint32_t position, float threshold) {
  uint32_t counts[2] = {0, 0};  // two, not to wait for each other
  batch.for_each(position, [&](uint32_t value, uint32_t, int i) {
    asm("{\n"
        ".reg .pred above;\n"
        "setp.gt.f32 above, %1, %2;\n"
        "@above add.u32 %0, %0, 1;\n"
        "}"
        : "+r"(counts[i % 2])
        : "f"(__uint_as_float(value)), "f"(threshold));
  });
  uint32_t const mine = counts[0] + counts[1];
  uint32_t const end = warp_inclusive_sum(mine);
  uint32_t place = 0;
  if (threadIdx.x % 32 == 31 && end != 0) place = atomicAdd(&s.listed, end);
  place = __shfl_sync(~0u, place, 31) + end;
  if (__any_sync(~0u, place > kCapacity)) return false;
  auto to = uint32_t(__cvta_generic_to_shared(s.list + (place - mine)));
  // Anew: the compiler would keep the comparisons' results, or 2-byte scores made long, and run out of registers.
#pragma unroll
  for (uint4& v : batch.v) asm volatile("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w));
  batch.for_each(position, [&](uint32_t value, uint32_t at, int) {
    asm volatile(
        "{\n"
        ".reg .pred above;\n"
        "setp.gt.f32 above, %1, %3;\n"
        "@above st.shared.v2.b32 [%0], {%1, %2};\n"
        "@above add.u32 %0, %0, 8;\n"
        "}"
        : "+r"(to)
        : "f"(__uint_as_float(value)), "r"(at), "f"(threshold)
        : "memory");
  });
  return true;
}

// A thread's first vector of what the CTAs of a row look at from vector `begin` on.
__device__ __forceinline__ int vector_of(int rank, int begin) {
  int const warp = rank * kWarps + int(threadIdx.x) / 32;
  return begin + warp * (32 * kVectors) + int(threadIdx.x) % 32;
}

// A reading that hopes for room in the list: nothing is said of it if `listed` ends up above kCapacity. What is looked
// at first has been fetched.
template <class Format>
__device__ __forceinline__ void collect_at_once(SharedStorage& s, Row<Format> const& row, int rank, int size,
                                                float threshold) {
  int const step = size * (kThreads * kVectors), end = row.vectors();
#pragma unroll 1
  for (int begin = 0; begin < end; begin += step) {
    Batch<Format> const batch = fetched<Format>(s);
    if (begin + step < end) fetch(s, row, vector_of(rank, begin + step));
    if (!put_above(s, batch, row.position(vector_of(rank, begin)), threshold)) break;
  }
  wait_for_copies();
}

template <class Format>
struct Rounds {
  SharedStorage& s;
  Row<Format> row;
  uint32_t k;
  uint32_t round = 1;

  // The list is empty. Ends with a barrier.
  __device__ __forceinline__ void run(float threshold) {
    auto const vector = [](int begin) { return vector_of(0, begin); };
    int const step = kThreads * kVectors, end = row.vectors();
    fetch(s, row, vector(0));
#pragma unroll 1
    for (int begin = 0; begin < end; begin += step) {
      int done = kVectors;  // of this step's
      {
        Batch<Format> const batch = fetched<Format>(s);
        if (begin + step < end) fetch(s, row, vector(begin + step));
        if (!put(s, batch, row.position(vector(begin)), Above{threshold})) {
          s.full_in_round = round;
          done = 0;
        }
      }
      if (end_round()) continue;
      do {
        make_room();
        threshold = Order<Format>(row.length).score(s.cut);
        put_again(vector(begin), done);
      } while (!end_round());
    }
  }

 private:
  // Whether everything found room. All threads agree: a warp that is ahead writes a later round's number.
  __device__ __forceinline__ bool end_round() {
    __syncthreads();
    return s.full_in_round != round++;
  }

  __device__ __forceinline__ void make_room() {
    Order<Format> const order(row.length);
    uint64_t const cut = keep_best(s, k, order);
    if (threadIdx.x == 0) s.cut = cut;
    __syncthreads();
  }

  // Vector for vector, from memory: rare, and by now the next step's have their place.
  __device__ __forceinline__ void put_again(int first, int& done) const {
    NotBelow<Format> const accepts{s.cut, Order<Format>(row.length)};
#pragma unroll 1
    for (; done < kVectors; ++done) {
      Vectors<Format, 1> one;
      int const vector = first + done * one.kApart;
      one.v[0] = row.load_part(vector);
      if (!put(s, one, row.position(vector), accepts)) {
        s.full_in_round = round;
        return;
      }
    }
  }
};

}  // namespace dsa::topk
