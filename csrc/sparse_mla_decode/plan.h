// How the keys of a decoding step are spread over the device.
//
// A query's keys are counted in units: a block of 64, or a pair of blocks where a CTA works on 64 heads. The units of
// all queries form one line, which is cut into `parts`, one for each worker (a CTA for 64 heads of a query, or one of
// the two consumers of a CTA for few heads). A worker that holds all units of a query writes its result; the others
// write their parts to partial slots, and combine.cuh adds them up.
//
// The plan is the list of cuts, and nothing else: any list that ascends, without equal ones before its end, gives right
// results, whatever the lengths have become since. Without a plan, or with one for other sizes, every query is taken to
// have the units that fit its topk (EvenCuts). So it is where no query has a length: there is nothing that a plan could
// add, and the host, which cannot read one, knows then whether queries are cut at all.
//
// Batch-invariant: queries are cut at fixed units alone (chunks), and every chunk is a partial result of its own, so
// that a query's bits do not depend on where the cuts lie.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "op.h"
#ifdef __CUDACC__
#include "arch/any/dependent_grids.cuh"
#endif

namespace dsa {

constexpr int kDecodeBlock = 64;  // keys a block

struct DecodeShape {
  int queries, h_q, topk[2];

  __host__ __device__ constexpr bool few_heads() const { return h_q <= 16; }
  __host__ __device__ constexpr int head_blocks() const { return few_heads() ? 1 : (h_q + 63) / 64; }
  __host__ __device__ constexpr int padded_heads() const {
    return few_heads() ? (h_q <= 8 ? 8 : 16) : head_blocks() * 64;
  }
  __host__ __device__ constexpr int unit_blocks() const { return few_heads() ? 1 : 2; }
  // A chunk is 1024 keys.
  __host__ __device__ constexpr int chunk_units() const { return 1024 / kDecodeBlock / unit_blocks(); }
  __host__ __device__ constexpr int parts(int sms) const {
    int const by_heads = sms / head_blocks();
    return few_heads() ? 2 * sms : by_heads > 1 ? by_heads : 1;
  }
  __host__ __device__ static constexpr int blocks_of(int length) { return (length + kDecodeBlock - 1) / kDecodeBlock; }
  // Of a query with so many tokens of either cache; a query without any has one, masked.
  __host__ __device__ constexpr int units(int length, int extra_length) const {
    int const blocks = blocks_of(length) + blocks_of(extra_length);
    return blocks == 0 ? 1 : (blocks + unit_blocks() - 1) / unit_blocks();
  }
  __host__ __device__ constexpr int most_units() const { return units(topk[0], topk[1]); }
  // Work is counted in int.
  __host__ constexpr bool is_countable() const { return queries == 0 || most_units() <= INT32_MAX / queries; }
  __host__ __device__ constexpr int most_chunks() const { return (most_units() + chunk_units() - 1) / chunk_units(); }
  __host__ constexpr int64_t partial_slots(int sms, bool batch_invariant) const {
    return batch_invariant ? (most_chunks() > 1 ? int64_t(queries) * most_chunks() : 0) : 2 * int64_t(parts(sms));
  }
};

// A place on the line of units.
struct DecodeCut {
  int query, unit;
};

// int32 elements: a header (queries, parts, units of a full query), and parts + 1 cuts. A batch-invariant plan has one
// element more, which is how the host knows it.
constexpr int kPlanHeader = 3;
constexpr int64_t plan_elements(int parts) { return kPlanHeader + 2 * (int64_t(parts) + 1); }

// floor(part * total / parts), for part <= parts < 2^15. (32 bits: producers have few registers.)
__host__ __device__ constexpr int share_before(int part, int parts, int total) {
  return part * (total / parts) + part * (total % parts) / parts;
}

// Where part `part` begins on a line of so many units, in equal parts. Parts are not empty, except the last ones if
// there are fewer units: combine.cu relies on that.
__host__ __device__ constexpr int unit_before(int part, int parts, int units) {
  int const used = parts < units ? parts : units;
  return part < used ? share_before(part, used, units) : units;
}

// The cuts if every query has as many units: by whichever way should take the fewest units' time,
//   pieces     every query in as many equal pieces as there are parts for it; whole queries if there are more than
//   parts a line     parts of equal length, most of which hold pieces of two queries
// Adding up pieces takes about as long as kCombineUnits units, a second query in a part kSecondUnits.
constexpr int kCombineUnits = 3, kSecondUnits = 4;
class EvenCuts {
 public:
  __host__ __device__ constexpr EvenCuts(int parts, int queries, int units)
      : parts_(parts), queries_(queries), units_(units), room_(queries > 0 ? parts / queries : 1) {
    pieces_ = room_ < 1 ? 1 : room_ < units ? room_ : units;
    int const longest = (queries / parts + (queries % parts > 0)) * ((units + pieces_ - 1) / pieces_);
    int const line = queries * units / parts + kCombineUnits + kSecondUnits;
    in_pieces_ = longest + (pieces_ > 1 ? kCombineUnits : 0) <= line;
  }

  // Where part `part` begins.
  __host__ __device__ constexpr DecodeCut operator[](int part) const {
    if (!in_pieces_) {
      int const at = unit_before(part, parts_, queries_ * units_);
      return {at / units_, at % units_};
    }
    if (room_ < 1) return {share_before(part, parts_, queries_), 0};
    int const query = part / pieces_;
    if (query >= queries_) return {queries_, 0};
    return {query, part % pieces_ * units_ / pieces_};
  }

  __host__ __device__ constexpr bool whole_queries() const { return in_pieces_ && pieces_ == 1; }

 private:
  int parts_, queries_, units_;
  int room_, pieces_ = 1;  // parts there are for a query, and pieces it is cut into
  bool in_pieces_ = true;
};

// What one part holds: from one cut to the next.
struct DecodeRange {
  DecodeCut begin, end;
};

#ifdef __CUDACC__
// Of a part (0 to parts - 1), by the plan if there is one for these sizes. kPastL1: the plan may still change.
template <bool kPastL1 = false>
__device__ inline DecodeRange part_range(int32_t const* plan, DecodeShape const& shape, int part, int parts) {
  int const units = shape.most_units();
  if (plan != nullptr) {
    // All loads at once: one after the other they would take seven times as long as one, and everything waits for them.
    int const at[7] = {0,
                       1,
                       2,
                       kPlanHeader + 2 * part,
                       kPlanHeader + 2 * part + 1,
                       kPlanHeader + 2 * part + 2,
                       kPlanHeader + 2 * part + 3};
    int32_t v[7];
#pragma unroll
    for (int i = 0; i < 7; ++i)
      if constexpr (kPastL1)
        v[i] = load_past_l1(plan + at[i]);
      else
        asm volatile("ld.global.s32 %0, [%1];" : "=r"(v[i]) : "l"(plan + at[i]) : "memory");
    if (v[0] == shape.queries && v[1] == parts && v[2] == units)
      return {{min(max(v[3], 0), shape.queries), min(max(v[4], 0), units)},
              {min(max(v[5], 0), shape.queries), min(max(v[6], 0), units)}};
  }
  EvenCuts const cuts(parts, shape.queries, units);
  return {cuts[part], cuts[part + 1]};
}
#endif

struct DecodePlanParams {
  DecodeShape shape;
  int s_q, parts;
  bool batch_invariant;
  int32_t const* length[2];  // [batch, s_q] or null
  int64_t length_stride_batch[2], length_stride_token[2];
  int32_t* plan;
};

int launch_decode_plan(DecodePlanParams const&, void* stream);          // a cudaError_t
int launch_decode_combine(SparseMlaDecodeParams const&, void* stream);  // after a kernel that wrote parts

}  // namespace dsa
