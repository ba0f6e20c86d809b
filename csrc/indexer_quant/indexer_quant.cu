// The launchers; no part of the kernels depends on the architecture.
#include "prepare.cuh"
#include "quantize.cuh"
#include "store.cuh"

namespace dsa {
namespace {

using namespace indexer_quant;

template <class T, int kHeadDim>
cudaError_t quantize(QuantizeIndexerParams const& p, void* stream) {
  constexpr int kVectors = kQuantizeThreads / (kHeadDim / kValues);
  auto const blocks = unsigned((p.vectors + kVectors - 1) / kVectors);
  quantize_kernel<T, kHeadDim><<<blocks, kQuantizeThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  return cudaGetLastError();
}

template <class T>
cudaError_t quantize(QuantizeIndexerParams const& p, void* stream) {
  switch (p.head_dim) {
    case 32: return quantize<T, 32>(p, stream);
    case 64: return quantize<T, 64>(p, stream);
    case 128: return quantize<T, 128>(p, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

int launch_quantize_indexer(QuantizeIndexerParams const& p, void* stream) {
  switch (p.element) {
    case IndexerElement::kBf16: return quantize<__nv_bfloat16>(p, stream);
    case IndexerElement::kFp16: return quantize<__half>(p, stream);
    case IndexerElement::kFp32: return quantize<float>(p, stream);
    default: return cudaErrorInvalidValue;
  }
}

int launch_prepare_indexer(PrepareIndexerParams const& p, void* stream) {
  unsigned const vectors = unsigned(p.tokens) * unsigned(p.heads + 1);
  unsigned const blocks = (vectors + kPrepareVectors - 1) / kPrepareVectors;
  prepare_kernel<<<blocks, kPrepareThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  return cudaGetLastError();
}

int launch_store_indexer_cache(StoreIndexerCacheParams const& p, void* stream) {
  int64_t const alignment = reinterpret_cast<intptr_t>(p.cache) | p.layout.page_stride;
  // Scales begin behind the codes, which are a multiple of 32 bytes.
  auto* const kernel = alignment % 16 == 0  ? store_kernel<uint4>
                       : alignment % 4 == 0 ? store_kernel<uint32_t>
                                            : store_kernel<uint8_t>;
  unsigned const per_block = unsigned(tokens_per_block(p.layout));
  unsigned const blocks = (unsigned(p.tokens) + per_block - 1) / per_block;
  kernel<<<blocks, kStoreThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  return cudaGetLastError();
}

}  // namespace dsa
