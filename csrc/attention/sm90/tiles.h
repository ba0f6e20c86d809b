// Blocks and tiles that the attention kernels on Hopper share.
#pragma once

#include <cuda.h>
#include <cutlass/arch/barrier.h>

#include <cute/tensor.hpp>

namespace dsa::sm90 {

using namespace cute;
using bf16 = cutlass::bfloat16_t;
using Barrier = cutlass::arch::ClusterTransactionBarrier;

constexpr int kBlockK = 64;                         // keys a block
constexpr int kTileCols = 64;                       // columns of one 128-byte swizzled tile
constexpr int kTileElements = kBlockK * kTileCols;  // of 64 rows
constexpr int kDV = 512;
constexpr int kValueTiles = kDV / kTileCols;

// Two consumer warpgroups and a producer. Registers: 2 * 216 + 72 = 504 of 512 a lane of three warpgroups.
constexpr int kThreads = 384;
constexpr int kConsumerRegisters = 216;
constexpr int kProducerRegisters = 72;

struct TensorMaps {
  CUtensorMap q, out;
};

}  // namespace dsa::sm90
