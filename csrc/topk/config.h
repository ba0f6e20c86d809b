// Sizes of the top-k kernel, and its shared memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "op.h"

#ifndef TOPK_THREADS
#define TOPK_THREADS 512
#endif

namespace dsa::topk {

constexpr int kThreads = TOPK_THREADS, kWarps = kThreads / 32;
constexpr int kCtasPerMultiprocessor =
    1024 / kThreads;  // one waits for memory or at a barrier while the other computes
// Of a cluster. More than 8 CTAs need the device's consent.
constexpr int kMinCtasPerRow = 4, kMaxCtasPerRow = 16, kColumnsPerCta = 8192;
constexpr int kVectorBytes = 16;
constexpr int kVectors = 4;                    // of a thread, in flight while as many are looked at
constexpr int kCapacity = 7168;                // candidates in the list
constexpr int kListed = kCapacity / kThreads;  // of a thread
constexpr int kDigitBits = 12;                 // of the radix selection
constexpr int kBins = 1 << kDigitBits;
constexpr int kWindow = 32 * kBins;  // positions that the bitmap covers
constexpr int kTies = 128;  // candidates in the cut's bin, of which the best are found by comparing all with all

// What one warp hands to the list at once in rounds, at most: a vector of 2-byte elements a lane.
constexpr int kWarpBatch = 32 * kVectorBytes / 2;
static_assert(kCapacity - kMaxTopk >= kWarpBatch, "after k have been chosen from a full list, a warp's fit again");
static_assert(kCapacity >= kMaxTopk + kWarpBatch, "a list that has no room for a warp's holds k or more");
static_assert(kBins % (4 * kThreads) == 0, "threads read bins four at a time");
static_assert(kCapacity % kThreads == 0 && kListed <= 32);

// What the search of a histogram finds.
struct alignas(16) Found {
  uint32_t bin;    // the greatest with `need` or more in it and the bins above
  uint32_t need;   // how many of it make up `need`
  uint32_t count;  // how many are in it
};

struct alignas(8) Candidate {
  uint32_t value;  // bits of fp32
  uint32_t position;
};

struct SharedStorage {
  // A histogram; then the bitmap of a window. Zero whenever neither is being made.
  alignas(16) uint32_t bins[kBins + 1];  // the last is always zero
  uint32_t nowhere[32];  // never read: a word a lane, as atomic operations on one address wait for each other
  Found found;
  uint32_t warp_sums[kWarps];
  union {
    uint4 incoming[kVectors][kThreads];  // what each thread has asked for, for itself alone
    uint32_t places[kBins + 1];          // of the result, for the first of each word of the bitmap
  };
  Candidate list[kCapacity];
  uint64_t ties[kTies];    // ranks
  uint32_t listed;         // places that have been handed out, more than there are once warps had to be refused
  uint32_t tied;           // ties
  uint32_t greatest;       // key in the sample
  uint32_t kept;           // while the list is being thinned out
  uint32_t full_in_round;  // the last round in which some warp's candidates found no room
  uint64_t cut;            // rank (order.cuh) of the worst of the k best so far, or a bound just below it
};

}  // namespace dsa::topk
