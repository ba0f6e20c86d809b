// Tensor maps for TMA. The driver's encoder is found through the runtime, so nothing links against libcuda.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace dsa {

using TensorMapEncoder = decltype(&cuTensorMapEncodeTiled);

inline TensorMapEncoder tensor_map_encoder() {
  static auto const encode = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaError_t const e =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found);
    return e == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<TensorMapEncoder>(f) : nullptr;
  }();
  return encode;
}

template <int kRank>
cudaError_t encode_tensor_map(CUtensorMap& map, CUtensorMapDataType type, CUtensorMapSwizzle swizzle,
                              CUtensorMapL2promotion promotion, void const* base, uint64_t const (&sizes)[kRank],
                              uint64_t const (&strides)[kRank - 1], uint32_t const (&box)[kRank]) {
  TensorMapEncoder const encode = tensor_map_encoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  uint32_t ones[kRank];
  for (uint32_t& x : ones) x = 1;
  CUresult const r = encode(&map, type, kRank, const_cast<void*>(base), sizes, strides, box, ones,
                            CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return r == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// A bf16 tensor of rank kRank, innermost dimension first and contiguous, read in boxes of 128-byte swizzled rows.
// `strides` are bytes and start with the second dimension. Out-of-range elements read as zero.
template <int kRank>
cudaError_t encode_bf16_tensor_map(CUtensorMap& map, void const* base, uint64_t const (&sizes)[kRank],
                                   uint64_t const (&strides)[kRank - 1], uint32_t const (&box)[kRank]) {
  return encode_tensor_map<kRank>(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_SWIZZLE_128B,
                                  CU_TENSOR_MAP_L2_PROMOTION_NONE, base, sizes, strides, box);
}

// The same for a tensor of bytes, in rows as wide as the swizzle.
template <int kRank>
cudaError_t encode_byte_tensor_map(CUtensorMap& map, CUtensorMapSwizzle swizzle, void const* base,
                                   uint64_t const (&sizes)[kRank], uint64_t const (&strides)[kRank - 1],
                                   uint32_t const (&box)[kRank]) {
  return encode_tensor_map<kRank>(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, base,
                                  sizes, strides, box);
}

}  // namespace dsa
