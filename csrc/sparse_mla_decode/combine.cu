// Adds up the parts of the queries that were cut (plan.h), in the order of their keys: the same bits on every launch.
//
// Work is a head of a cut query: 128 threads, four columns each, with the loads of several parts in flight.
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "arch/any/dependent_grids.cuh"
#include "attention/softmax_math.cuh"
#include "sparse_mla_decode/plan.h"

namespace dsa {
namespace {

constexpr int kThreads = 128, kColumns = 512;
constexpr int kInFlight = 8;

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

__device__ void combine_head(CombineParams const& p, PartSlots const& slots, int head) {
  int const heads = p.shape.padded_heads(), column = threadIdx.x * 4;
  // By all lanes of every warp: one after the other these loads would take longer than all the rest.
  float top = negative_infinity();
  for (int i = threadIdx.x % 32; i < slots.count; i += 32) top = fmaxf(top, p.partial_lse[slots[i] * heads + head]);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, mask));
  float const reference = exponent_offset(top);

  float4 acc = {0.f, 0.f, 0.f, 0.f};
  float sum = 0.f;
  for (int base = 0; base < slots.count; base += kInFlight) {
    float4 part[kInFlight];
    float weight[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      weight[i] = 0.f;
      part[i] = {0.f, 0.f, 0.f, 0.f};
      if (base + i >= slots.count) continue;
      int64_t const row = slots[base + i] * heads + head;
      weight[i] = p.partial_lse[row];
      part[i] = *reinterpret_cast<float4 const*>(p.partial_out + row * kColumns + column);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (base + i >= slots.count) continue;
      float const w = exp2f(weight[i] - reference);
      sum += w;
      acc.x += w * part[i].x;
      acc.y += w * part[i].y;
      acc.z += w * part[i].z;
      acc.w += w * part[i].w;
    }
  }

  float const sink = p.attn_sink != nullptr ? p.attn_sink[head] : negative_infinity();
  float const scale = output_scale(sum, reference, sink);
  int const batch = slots.query / p.s_q, token = slots.query % p.s_q;
  auto* const out = static_cast<__nv_bfloat16*>(p.out) + batch * p.out_stride_batch + token * p.out_stride_token +
                    head * p.out_stride_head + column;
  *reinterpret_cast<uint2*>(out) =
      make_uint2(pack_bf16(acc.x * scale, acc.y * scale), pack_bf16(acc.z * scale, acc.w * scale));
  if (threadIdx.x == 0) p.lse[int64_t(slots.query) * p.h_q + head] = natural_lse(sum, reference);
}

// A query is cut where a part begins within it; `leads` are the parts before which it is cut first.
__device__ int find_cut_queries(CombineParams const& p, DecodeCut* cuts, int* leads) {
  for (int part = threadIdx.x; part <= p.parts; part += kThreads)
    cuts[part] = cut_before(p.plan, p.shape, part, p.parts);
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

__global__ void __launch_bounds__(kThreads) combine_cut_queries(__grid_constant__ CombineParams const p) {
  extern __shared__ DecodeCut cuts[];
  int* const leads = reinterpret_cast<int*>(cuts + p.parts + 1);
  int const count = find_cut_queries(p, cuts, leads);
  wait_for_grid_before();
  for (int64_t i = blockIdx.x; i < int64_t(count) * p.h_q; i += gridDim.x) {
    int const lead = leads[i / p.h_q], query = cuts[lead].query;
    int last = lead;
    while (last + 1 < p.parts && cuts[last + 1].query == query) ++last;
    combine_head(p, {query, last - lead + 2, 2 * (lead - 1) + 1, 2 * lead, 2}, int(i % p.h_q));
  }
}

__global__ void __launch_bounds__(kThreads) combine_chunks(__grid_constant__ CombineParams const p) {
  wait_for_grid_before();
  for (int64_t i = blockIdx.x; i < int64_t(p.shape.queries) * p.h_q; i += gridDim.x) {
    int const query = int(i / p.h_q);
    int length[2];
    for (int s = 0; s < 2; ++s) {
      KvSelection const& keys = p.keys[s];
      int64_t const at = query / p.s_q * keys.length_stride_batch + query % p.s_q * keys.length_stride_token;
      length[s] = keys.length == nullptr ? keys.topk : min(max(keys.length[at], 0), keys.topk);
    }
    int const chunks = (p.shape.units(length[0], length[1]) + p.shape.chunk_units() - 1) / p.shape.chunk_units();
    int64_t const first = int64_t(query) * p.shape.most_chunks();
    if (chunks > 1) combine_head(p, {query, chunks, first, first + 1, 1}, int(i % p.h_q));
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

  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  int64_t const most = int64_t(p.batch_invariant || shape.queries < p.parts ? shape.queries : p.parts) * p.h_q;
  config.gridDim = dim3(unsigned(most < 8 * sms ? most : 8 * sms));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = p.batch_invariant ? 0 : (p.parts + 1) * (sizeof(DecodeCut) + sizeof(int));
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, p.batch_invariant ? combine_chunks : combine_cut_queries, p);
}

}  // namespace dsa
