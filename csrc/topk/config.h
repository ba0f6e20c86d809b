// Sizes of the top-k kernel, and its shared memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "op.h"

namespace dsa::topk {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kCtasPerMultiprocessor = 2;  // one waits for memory or at a barrier while the other computes
// Of a cluster. More than 8 CTAs need the device's consent.
constexpr int kMinCtasPerRow = 4, kMaxCtasPerRow = 16, kColumnsPerCta = 16384;
constexpr int kVectorBytes = 16;
constexpr int kVectors = 4;      // of a thread, in flight while as many are looked at
constexpr int kCapacity = 7168;  // candidates in the list
constexpr int kDigitBits = 12;   // of the radix selection
constexpr int kBins = 1 << kDigitBits;
constexpr int kWindow = 32 * kBins;  // positions that the bitmap covers
constexpr int kSampleEvery = 32;     // at most so many vectors of a row for one that is sampled

// What one warp hands to the list at once, at most: vectors of 2-byte elements.
constexpr int kWarpBatch = 32 * kVectors * kVectorBytes / 2;
static_assert(kCapacity - kMaxTopk >= kWarpBatch, "after k have been chosen from a full list, a warp's fit again");
static_assert(kCapacity >= kMaxTopk + kWarpBatch, "a list that has no room for a warp's holds k or more");
static_assert(kBins % (4 * kThreads) == 0, "threads read bins four at a time");

// Where a row's candidates are.
struct RowPlace {
  void const* scores;  // of position 0
  int length;
  int lead;  // elements of the first vector that lie before the row
};

struct SharedStorage {
  // A histogram; then the bitmap of a window. Zero whenever neither is being made.
  alignas(16) uint32_t bins[kBins];
  uint4 incoming[kVectors][kThreads];  // what each thread has asked for, for itself alone
  // The list, of the row's leading CTA. At the end the chosen positions in order stand in `values`.
  uint32_t values[kCapacity];  // bits of fp32
  uint32_t positions[kCapacity];
  uint32_t listed;  // places that have been handed out, more than there are once warps had to be refused
  uint32_t kept;    // while the list is being thinned out

  // Of every CTA, written by any CTA of the row.
  uint32_t full_in_round;  // the last round in which some warp's candidates found no room
  float threshold;         // candidates lie above it
  uint64_t cut;            // rank (order.cuh) of the worst of the k best so far, or a bound just below it

  RowPlace row;  // of every CTA: kept here, because registers are short where it is read
  uint32_t warp_sums[kWarps];
  uint32_t found_bin, found_need, found_count;
};

}  // namespace dsa::topk
