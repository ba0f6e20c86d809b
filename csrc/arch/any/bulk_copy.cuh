// Bulk copies from global to shared memory, which a thread starts and an mbarrier counts.
#pragma once

#include <cutlass/arch/barrier.h>
#include <cute/arch/util.hpp>

#include <cstdint>

namespace dsa {

// Both addresses and `bytes` are multiples of 16; the barrier receives the bytes.
__device__ __forceinline__ void copy_bulk(void* shared, void const* global, uint32_t bytes,
                                          cutlass::arch::ClusterTransactionBarrier const& barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   cute::cast_smem_ptr_to_uint(shared)),
               "l"(global), "r"(bytes), "r"(cute::cast_smem_ptr_to_uint(&barrier))
               : "memory");
}

}  // namespace dsa
