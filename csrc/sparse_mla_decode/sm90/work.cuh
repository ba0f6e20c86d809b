// The tiles of one worker: which query and keys, and where results go.
#pragma once

#include <cutlass/fast_math.h>

#include "attention/sm90/tiles.h"
#include "attention/softmax_math.cuh"
#include "sparse_mla_decode/plan.h"

namespace dsa::sm90 {

static_assert(kBlockK == kDecodeBlock);

// Of two warpgroups, which fill the key tiles of two others: conversion takes many instructions.
constexpr int kProducerWarps = 8;

// CTAs that may share a query's keys as a cluster (team.cuh).
constexpr int kTeams[] = {16, 8, 6, 4, 3, 2}, kLargestTeam = kTeams[0];

struct DecodeParams : SparseMlaDecodeParams {
  DecodeShape shape;
  int parts;
  int team;                      // CTAs that share a query's keys; 1: the plan says who has which
  int column_ctas;               // CTAs (or teams) that share the value columns: 1 or 2
  cutlass::FastDivmod pages[2];  // of the caches: slots to pages
  // To divide by the team, the head blocks, and s_q. (A division by what is not known takes some 100 cycles, where a
  // call of few queries takes 20000.)
  cutlass::FastDivmod teams, head_blocks, tokens;
  cutlass::FastDivmod share;  // of a warp's output, in vectors of team.cuh or few_heads_team.cuh

  // What a CTA works on: a part, or a query of a team; its first head; its share of the value columns.
  struct Place {
    int part, head, column_cta;
  };
  __device__ __forceinline__ Place place() const {
    int at, rank, part, head_block;
    teams(at, rank, int(blockIdx.x));
    head_blocks(part, head_block, at >> (column_ctas - 1));
    return {part, head_block * 64, at & (column_ctas - 1)};
  }

  __device__ __forceinline__ bool has_lengths() const { return keys[0].length != nullptr || keys[1].length != nullptr; }
  __device__ __forceinline__ static int length(KvSelection const& s, int batch, int token) {
    if (s.length == nullptr) return s.topk;
    return min(max(load_past_l1(s.length + batch * s.length_stride_batch + token * s.length_stride_token), 0), s.topk);
  }
};

// Key blocks [first_block, end_block) of a query, some of its heads. Blocks count through the first cache's, then the
// second's; those past the last are masked.
struct DecodeTile {
  int batch, token, head;
  int slot;  // for the result of a part; -1: all of the query
  int first_block, end_block;
  int length[2];
};

class DecodeWork {
 public:
  using Params = DecodeParams;

  static constexpr bool kTeam = false;

  // Of a CTA, whose part is `range`: neighbouring CTAs, or teams, take the head blocks of one part, and so read the
  // same rows at the same time.
  __device__ __forceinline__ DecodeWork(Params const& params, DecodeRange const& range)
      : DecodeWork(params, params.place().part, params.place().head, range) {}
  // Of one of its two consumers, for few heads.
  __device__ __forceinline__ DecodeWork(Params const& params, int consumer, DecodeRange const& range)
      : DecodeWork(params, part_of(consumer), 0, range) {}
  static __device__ __forceinline__ int part_of(int consumer) { return blockIdx.x + consumer * gridDim.x; }
  // Of what is left of a part.
  __device__ __forceinline__ DecodeWork(Params const& params, int part, int head, DecodeRange const& left)
      : params_(params), part_(part), head_(head), at_(left.begin), end_(left.end) {
    open();
  }
  static __device__ __forceinline__ DecodeRange range_of_cta(Params const& params) {
    return range(params, params.place().part);
  }
  // All of a part, by a plan that may still change.
  static __device__ __forceinline__ DecodeRange range(Params const& params, int part) {
    if (part >= params.parts) return {};
    DecodeRange r = part_range<true>(params.plan, params.shape, part, params.parts);
    if (params.batch_invariant) {
      r.begin.unit -= r.begin.unit % params.shape.chunk_units();
      r.end.unit -= r.end.unit % params.shape.chunk_units();
    }
    return r;
  }

  __device__ __forceinline__ bool done() const {
    return at_.query > end_.query || (at_.query == end_.query && at_.unit >= end_.unit);
  }

  __device__ __forceinline__ DecodeRange left() const { return {at_, end_}; }

  __device__ __forceinline__ void advance() {
    if (params_.batch_invariant && (at_.unit += params_.shape.chunk_units()) < units_) return;
    at_ = {at_.query + 1, 0};
    open();
  }

  __device__ __forceinline__ DecodeTile tile() const {
    DecodeShape const& shape = params_.shape;
    bool const last = at_.query == end_.query;
    int slot = -1, end = last ? end_.unit : max(units_, at_.unit + 1);
    if (params_.batch_invariant) {
      end = min(at_.unit + shape.chunk_units(), units_);
      if (units_ > shape.chunk_units()) slot = at_.query * shape.most_chunks() + at_.unit / shape.chunk_units();
    } else if (at_.unit > 0 || last) {
      slot = 2 * part_ + (at_.unit > 0 ? 0 : 1);
    }
    int const per_unit = shape.unit_blocks();
    return {at_.query / params_.s_q, at_.query % params_.s_q, head_, slot, at_.unit * per_unit,
            end * per_unit,          {length_[0], length_[1]}};
  }
  __device__ __forceinline__ int blocks() const {
    DecodeTile const t = tile();
    return t.end_block - t.first_block;
  }
  __device__ __forceinline__ int pairs() const { return blocks() / 2; }

  static __device__ __forceinline__ bool is_whole(DecodeTile const& tile) { return tile.slot < 0; }
  // Row `row` (head tile.head + row) of a part's output.
  static __device__ __forceinline__ float* partial(Params const& p, DecodeTile const& tile, int row) {
    return p.partial_out + (int64_t(tile.slot) * p.shape.padded_heads() + tile.head + row) * kDV;
  }
  static __device__ __forceinline__ float output_scale(Params const& p, DecodeTile const& tile, int head, float sum,
                                                       float reference) {
    bool const sinks = p.attn_sink != nullptr && is_whole(tile) && head < p.h_q;
    return dsa::output_scale(sum, reference, sinks ? p.attn_sink[head] : negative_infinity());
  }
  static __device__ __forceinline__ void write_stats(Params const& p, DecodeTile const& tile, int head, float sum,
                                                     float reference, float) {
    if (is_whole(tile))
      p.lse[(int64_t(tile.batch) * p.s_q + tile.token) * p.h_q + head] = natural_lse(sum, reference);
    else
      p.partial_lse[int64_t(tile.slot) * p.shape.padded_heads() + head] =
          sum == 0.f ? negative_infinity() : log2f(sum) + reference;
  }

 private:
  // Reads the query's lengths. A chunk past its last one is not worked on: combine.cu knows nothing of it.
  __device__ __forceinline__ void open() {
    for (; !done(); at_ = {at_.query + 1, 0}) {
      int const batch = at_.query / params_.s_q, token = at_.query % params_.s_q;
      length_[0] = Params::length(params_.keys[0], batch, token);
      length_[1] = Params::length(params_.keys[1], batch, token);
      units_ = params_.shape.units(length_[0], length_[1]);
      if (!params_.batch_invariant || at_.unit < units_) return;
    }
  }

  Params const& params_;
  int const part_, head_;
  DecodeCut at_, end_;
  int length_[2], units_;
};

}  // namespace dsa::sm90
