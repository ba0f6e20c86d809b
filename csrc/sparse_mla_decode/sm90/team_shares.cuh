// How the CTAs of a team share out what is to be finished (team.cuh, few_heads_team.cuh).
#pragma once

#include <cuda_runtime_api.h>

namespace dsa::sm90 {

// A warp's output, as kVectors vectors of 16 bytes a thread, in equal shares for so many members. The last shares are
// the smallest, or empty. Warps begin with different members (`first`), who so finish their first shares.
template <int kVectors_>
struct TeamShares {
  static constexpr int kVectors = kVectors_;

  int members, each;

  __device__ __forceinline__ constexpr explicit TeamShares(int members)
      : TeamShares(members, (kVectors + members - 1) / members) {}
  __device__ __forceinline__ constexpr TeamShares(int members, int each) : members(members), each(each) {}

  __device__ __forceinline__ constexpr int count(int share) const { return min(max(kVectors - share * each, 0), each); }
  // Who finishes a warp's share, and which share a member finishes.
  __device__ __forceinline__ int member_of(int share, int first) const {
    return share + first < members ? share + first : share + first - members;
  }
  __device__ __forceinline__ int share_of(int member, int first) const {
    return member < first ? member - first + members : member - first;
  }
};

}  // namespace dsa::sm90
