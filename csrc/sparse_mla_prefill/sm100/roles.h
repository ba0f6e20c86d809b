// Warps of a CTA, behind the softmax warps.
#pragma once

#include "attention/sm100/softmax_warps.cuh"

namespace dsa::sm100 {

enum Role : int { kFirstLoader = kSoftmaxWarps, kSecondLoader, kProducts };
constexpr int kThreads = (kProducts + 1) * 32;

}  // namespace dsa::sm100
