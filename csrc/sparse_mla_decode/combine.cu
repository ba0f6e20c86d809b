// Adds up the parts of the queries that were cut (plan.h), in the order of their keys: the same bits on every launch.
//
// 128 threads, four columns each, take one head of up to 16 parts at a time, or several of fewer. All loads of these
// are on their way at once: the kernel is short, and waiting is what it does.
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "arch/any/dependent_grids.cuh"
#include "attention/softmax_math.cuh"
#include "common/launch.h"
#include "sparse_mla_decode/plan.h"

namespace dsa {
namespace {

constexpr int kThreads = 128, kColumns = 512;
constexpr int kMostHeads = 4;  // of which a CTA's threads have loads in flight at once
constexpr int kCtas = 4;       // of a multiprocessor

struct CombineParams : SparseMlaDecodeParams {
  DecodeShape shape;
  int parts;
};

// A query's parts: slots first, then next, next + step, ...
struct PartSlots {
  int query, count;
  int64_t first, next;
  int step;

  __device__ int64_t operator[](int i) const { return i == 0 ? first : next + int64_t(i - 1) * step; }
};

// Heads [first, end) of a query, kHeads at a time, kParts parts of each at a time.
template <int kHeads, int kParts>
__device__ void combine_heads(CombineParams const& p, PartSlots const& slots, int first, int end) {
  int const heads = p.shape.padded_heads(), column = threadIdx.x * 4;
  int const batch = slots.query / p.s_q, token = slots.query % p.s_q;
  for (; first < end; first += kHeads) {
    float4 acc[kHeads];
    float sum[kHeads], top[kHeads];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      acc[h] = {0.f, 0.f, 0.f, 0.f};
      sum[h] = 0.f;
      top[h] = negative_infinity();
    }
    for (int base = 0; base < slots.count; base += kParts) {
      float4 part[kHeads][kParts];
      float lse[kHeads][kParts];
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
#pragma unroll
        for (int i = 0; i < kParts; ++i) {
          lse[h][i] = negative_infinity();
          part[h][i] = {0.f, 0.f, 0.f, 0.f};
          if (base + i >= slots.count || first + h >= end) continue;
          int64_t const row = slots[base + i] * heads + first + h;
          lse[h][i] = p.partial_lse[row];
          part[h][i] = *reinterpret_cast<float4 const*>(p.partial_out + row * kColumns + column);
        }
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        float const before = top[h];
#pragma unroll
        for (int i = 0; i < kParts; ++i) top[h] = fmaxf(top[h], lse[h][i]);
        float const reference = exponent_offset(top[h]), factor = exp2f(before - reference);
        sum[h] *= factor;
        acc[h] = {acc[h].x * factor, acc[h].y * factor, acc[h].z * factor, acc[h].w * factor};
#pragma unroll
        for (int i = 0; i < kParts; ++i) {
          float const w = exp2f(lse[h][i] - reference);
          sum[h] += w;
          acc[h].x += w * part[h][i].x;
          acc[h].y += w * part[h][i].y;
          acc[h].z += w * part[h][i].z;
          acc[h].w += w * part[h][i].w;
        }
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      int const head = first + h;
      if (head >= end) continue;
      float const reference = exponent_offset(top[h]),
                  sink = p.attn_sink != nullptr ? p.attn_sink[head] : negative_infinity(),
                  scale = output_scale(sum[h], reference, sink);
      auto* const out = static_cast<__nv_bfloat16*>(p.out) + batch * p.out_stride_batch + token * p.out_stride_token +
                        head * p.out_stride_head + column;
      *reinterpret_cast<uint2*>(out) =
          make_uint2(pack_bf16(acc[h].x * scale, acc[h].y * scale), pack_bf16(acc[h].z * scale, acc[h].w * scale));
      if (threadIdx.x == 0) p.lse[int64_t(slots.query) * p.h_q + head] = natural_lse(sum[h], reference);
    }
  }
}

__device__ void combine_heads(CombineParams const& p, PartSlots const& slots, int first, int end) {
  if (slots.count <= 2)
    combine_heads<4, 2>(p, slots, first, end);
  else if (slots.count <= 4)
    combine_heads<2, 4>(p, slots, first, end);
  else if (slots.count <= 8)
    combine_heads<1, 8>(p, slots, first, end);
  else
    combine_heads<1, 16>(p, slots, first, end);
}

// Heads that a CTA takes at once: so many that all CTAs have some, and that loads of several heads can be in flight.
__device__ int heads_at_once(int queries, int h_q) {
  int64_t const heads = int64_t(queries) * h_q;
  int n = 1;
  while (n < kMostHeads && heads >= int64_t(2 * n) * gridDim.x) n *= 2;
  return n;
}

// A query is cut where a part begins within it; `leads` are the parts before which it is cut first.
__device__ int find_cut_queries(CombineParams const& p, DecodeCut* cuts, int* leads) {
  for (int part = threadIdx.x; part < p.parts; part += kThreads)
    cuts[part] = part_range(p.plan, p.shape, part, p.parts).begin;
  __shared__ int count;
  __syncthreads();
  if (threadIdx.x < 32) {
    int found = 0;
    for (int base = 1; base < p.parts; base += 32) {
      int const part = base + threadIdx.x;
      bool const leads_query = part < p.parts && cuts[part].unit > 0 && cuts[part].query < p.shape.queries &&
                               (cuts[part - 1].query != cuts[part].query || cuts[part - 1].unit == 0);
      uint32_t const all = __ballot_sync(~0u, leads_query);
      if (leads_query) leads[found + __popc(all & ((1u << threadIdx.x) - 1))] = part;
      found += __popc(all);
    }
    if (threadIdx.x == 0) count = found;
  }
  __syncthreads();
  return count;
}

__global__ void __launch_bounds__(kThreads, kCtas) combine_cut_queries(__grid_constant__ CombineParams const p) {
  launch_dependent_grids();
  extern __shared__ DecodeCut cuts[];
  int* const leads = reinterpret_cast<int*>(cuts + p.parts + 1);
  // Before the wait, the plan alone is read. It is complete: the attention kernels let this one start when they have
  // waited for the plan's kernel themselves.
  int const count = find_cut_queries(p, cuts, leads);
  wait_for_grid_before();
  int const step = heads_at_once(count, p.h_q), steps = (p.h_q + step - 1) / step;
  for (int64_t i = blockIdx.x; i < int64_t(count) * steps; i += gridDim.x) {
    int const lead = leads[i / steps], query = cuts[lead].query, first = int(i % steps) * step;
    int last = lead;
    while (last + 1 < p.parts && cuts[last + 1].query == query) ++last;
    combine_heads(p, {query, last - lead + 2, 2 * (lead - 1) + 1, 2 * lead, 2}, first, min(first + step, p.h_q));
  }
}

__global__ void __launch_bounds__(kThreads, kCtas) combine_chunks(__grid_constant__ CombineParams const p) {
  launch_dependent_grids();
  wait_for_grid_before();
  int const step = heads_at_once(p.shape.queries, p.h_q), steps = (p.h_q + step - 1) / step;
  for (int64_t i = blockIdx.x; i < int64_t(p.shape.queries) * steps; i += gridDim.x) {
    int const query = int(i / steps), first = int(i % steps) * step;
    int length[2];
    for (int s = 0; s < 2; ++s) {
      KvSelection const& keys = p.keys[s];
      int64_t const at = query / p.s_q * keys.length_stride_batch + query % p.s_q * keys.length_stride_token;
      length[s] = keys.length == nullptr ? keys.topk : min(max(keys.length[at], 0), keys.topk);
    }
    int const chunks = (p.shape.units(length[0], length[1]) + p.shape.chunk_units() - 1) / p.shape.chunk_units();
    int64_t const slot = int64_t(query) * p.shape.most_chunks();
    if (chunks > 1) combine_heads(p, {query, chunks, slot, slot + 1, 1}, first, min(first + step, p.h_q));
  }
}

}  // namespace

int launch_decode_combine(SparseMlaDecodeParams const& params, void* stream) {
  int device = 0, sms = 0;
  if (cudaError_t e = cudaGetDevice(&device)) return e;
  if (cudaError_t e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device)) return e;
  DecodeShape const shape{params.batch * params.s_q, params.h_q, {params.keys[0].topk, params.keys[1].topk}};
  CombineParams const p{params, shape, shape.parts(sms)};
  if (shape.partial_slots(sms, p.batch_invariant) == 0 || shape.most_units() == 1) return cudaSuccess;
  if (p.plan == nullptr && EvenCuts(p.parts, shape.queries, shape.most_units()).whole_queries()) return cudaSuccess;

  int64_t const most = int64_t(p.batch_invariant || shape.queries < p.parts ? shape.queries : p.parts) * p.h_q;
  int const ctas = int(most < kCtas * sms ? most : kCtas * sms);
  int const shared_bytes = p.batch_invariant ? 0 : (p.parts + 1) * int(sizeof(DecodeCut) + sizeof(int));
  return launch_early(p.batch_invariant ? combine_chunks : combine_cut_queries, {ctas, kThreads}, shared_bytes,
                      static_cast<cudaStream_t>(stream), p);
}

}  // namespace dsa
