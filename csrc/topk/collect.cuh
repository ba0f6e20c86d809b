// One reading of a row, whose result is a list that holds its k best and little else.
//
// At first in the hope of room: every thread of the row's CTAs looks at kVectors vectors, which it has asked for in the
// step before, and its warp puts what lies above the threshold into its CTA's list, in any order, and waits for nobody.
//
// In rounds, if the list was too small: after each step all wait, and if some warp's candidates have found no room, the
// k best are kept and the cut rises to the worst of these; then those warps try again. So no distribution of scores, or
// of their places in the row, makes the list overflow.
#pragma once

#include "row.cuh"
#include "select.cuh"

namespace dsa::topk {

// A warp's candidates that are not below a cut go into the list; false if it has no room for them.
template <class Format>
__device__ __forceinline__ bool put(SharedStorage& s, uint4 const& vector, uint32_t position,
                                    Order<Format> const& order, uint64_t cut) {
  uint32_t accepted = 0;
#pragma unroll
  for (int i = 0; i < Format::kPerVector; ++i)
    accepted |= uint32_t(order.rank(Format::get(vector, i), position + i) >= cut) << i;
  uint32_t const mine = __popc(accepted), end = warp_inclusive_sum(mine), all = __shfl_sync(~0u, end, 31);
  if (all == 0) return true;
  int const lane = threadIdx.x % 32;
  uint32_t place = 0;
  if (lane == 31) place = atomicAdd(&s.listed, all);
  place = __shfl_sync(~0u, place, 31);
  if (place + all > kCapacity) {
#pragma unroll 1
    for (uint32_t i = place + lane; i < kCapacity; i += 32) s.list[i].value = __float_as_uint(kNothing);
    return false;
  }
  Candidate* to = s.list + (place + end - mine);
#pragma unroll
  for (int i = 0; i < Format::kPerVector; ++i)
    if (accepted >> i & 1) *to++ = {Format::get(vector, i), position + i};
  return true;
}

// The same for all that lies above a threshold, in as few instructions as can be: there are a dozen a score, and they
// are what most rows take their time for. 16 scores of a thread: for more the registers do not suffice.
template <class Format>
__device__ __forceinline__ bool put_above(SharedStorage& s, Vectors<Format, 16 / Format::kPerVector> part,
                                          uint32_t position, float threshold) {
  uint32_t counts[2] = {0, 0};  // two, not to wait for each other
  part.for_each(position, [&](uint32_t value, uint32_t, int i) {
    asm("{\n"
        ".reg .pred above;\n"
        "setp.gt.f32 above, %1, %2;\n"
        "@above add.u32 %0, %0, 1;\n"
        "}"
        : "+r"(counts[i % 2])
        : "f"(__uint_as_float(value)), "f"(threshold));
  });
  uint32_t const mine = counts[0] + counts[1], end = warp_inclusive_sum(mine);
  uint32_t place = 0;
  if (threadIdx.x % 32 == 31 && end != 0) place = atomicAdd(&s.listed, end);
  place = __shfl_sync(~0u, place, 31) + end;
  if (__any_sync(~0u, place > kCapacity)) return false;
  auto to = uint32_t(__cvta_generic_to_shared(s.list + (place - mine)));
  // Anew: the compiler would keep the comparisons' results, which takes more instructions.
#pragma unroll
  for (uint4& v : part.v) asm volatile("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w));
  part.for_each(position, [&](uint32_t value, uint32_t at, int) {
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
  constexpr int kPart = 16 / Format::kPerVector;
  int const step = size * (kThreads * kVectors), end = row.vectors();
#pragma unroll 1
  for (int begin = 0; begin < end; begin += step) {
    Batch<Format> const batch = fetched<Format>(s);
    if (begin + step < end) fetch(s, row, vector_of(rank, begin + step));
    bool room = true;
#pragma unroll
    for (int u = 0; u < kVectors; u += kPart) {
      Vectors<Format, kPart> part;
#pragma unroll
      for (int i = 0; i < kPart; ++i) part.v[i] = batch.v[u + i];
      int const first = vector_of(rank, begin) + u * part.kApart;
      room = room && put_above<Format>(s, part, row.position(first), threshold);
    }
    if (!room) break;
  }
  wait_for_copies();
}

// The list is empty, and `cut` a rank that k candidates are not below, if there are as many. Leaves no gaps in the
// list.
template <class Format>
__device__ __forceinline__ void collect_in_rounds(SharedStorage& s, Row<Format> const& row, uint32_t k, uint64_t cut) {
  constexpr int kApart = Batch<Format>::kApart;
  Order<Format> const order(row.length);
  uint32_t round = 1;
#pragma unroll 1
  for (int begin = 0; begin < row.vectors(); begin += kThreads * kVectors) {
    int const first = vector_of(0, begin);
    fetch(s, row, first);
    wait_for_copies();
    int done = 0;
    while (true) {
#pragma unroll 1
      for (; done < kVectors; ++done) {
        if (put(s, s.incoming[done][threadIdx.x], row.position(first + done * kApart), order, cut)) continue;
        s.full_in_round = round;
        break;
      }
      __syncthreads();
      // All threads agree: a warp that is ahead writes a later round's number.
      if (s.full_in_round != round++) break;
      cut = keep_best(s, k, order);
      __syncthreads();
    }
  }
}

}  // namespace dsa::topk
