// Warps of a CTA.
#pragma once

namespace dsa::sm100 {

enum Role : int { kSoftmaxWarps = 4, kFirstLoader = 4, kSecondLoader = 5, kProducts = 6 };
constexpr int kThreads = 7 * 32;
constexpr int kSoftmaxThreads = kSoftmaxWarps * 32;

// Named barriers (hardware barrier 0 is __syncthreads'). Warps w and w + 2 have the halves of the same rows.
enum NamedBarrier : unsigned { kRowHalves = 1 };  // and 2: 64 threads each

}  // namespace dsa::sm100
