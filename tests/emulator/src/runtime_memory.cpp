// Memory, which is the host's, and the driver's tensor maps.
#include <cstdlib>
#include <cstring>

#include "memory.h"
#include "runtime.h"
#include "tensor_map.h"

namespace emu {
namespace {

u64 variable_address(void const* handle, size_t* bytes) {
  auto const found = runtime().variables.find(handle);
  if (found == runtime().variables.end()) return 0;
  Variable const& variable = found->second;
  parse(*variable.module);
  *bytes = variable.bytes;
  auto const address = variable.module->variables.find(variable.name);
  return address == variable.module->variables.end() ? 0 : address->second;
}

CUresult invalid(char const* why) {
  refuse(cudaErrorInvalidValue, std::string("cuTensorMapEncodeTiled: ") + why);
  return CUDA_ERROR_INVALID_VALUE;
}

// Null, or what the driver would not take.
char const* fault_in(TensorMap const& map, cuuint32_t const* element_strides, CUtensorMapInterleave interleave) {
  constexpr u32 kMaxBox = 256;
  if (map.address % 16) return "the address is not a multiple of 16";
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE) return "interleaved layouts are not emulated";
  for (int d = 0; d < map.rank; ++d) {
    if (map.size[d] == 0) return "a size of 0, or over 2^32 - 1";
    if (map.box[d] == 0 || map.box[d] > kMaxBox) return "a box size not in 1..256";
    if (element_strides[d] != 1) return "element strides are not emulated";
    if (d > 0 && map.stride[d - 1] % 16) return "a stride that is not a multiple of 16 bytes";
    if (d > 0 && map.stride[d - 1] >= 1ull << 40) return "a stride of 2^40 bytes or more";
  }
  u32 const row = map.box[0] * map.element_bytes;
  if (row % 16) return "the box's rows are not a multiple of 16 bytes";
  if (map.swizzle != Swizzle::kNone && row > 16u << int(map.swizzle))
    return "the box's rows are wider than the swizzle";
  return nullptr;
}

CUresult encode_tiled(CUtensorMap* out, CUtensorMapDataType type, cuuint32_t rank, void* address,
                      cuuint64_t const* sizes, cuuint64_t const* strides, cuuint32_t const* box,
                      cuuint32_t const* element_strides, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  constexpr u8 kElementBytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};  // by CUtensorMapDataType
  if (size_t(type) >= sizeof kElementBytes) return invalid("a data type that is not emulated");
  if (rank < 1 || rank > 5) return invalid("the rank is not in 1..5");
  if (swizzle > CU_TENSOR_MAP_SWIZZLE_128B) return invalid("a swizzle that is not emulated");
  if (fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) return invalid("filling with NaN is not emulated");
  TensorMap map{};
  map.magic = TensorMap::kMagic;
  map.address = reinterpret_cast<u64>(address);
  map.rank = u8(rank);
  map.element_bytes = kElementBytes[type];
  map.swizzle = Swizzle(swizzle);
  for (u32 d = 0; d < rank; ++d) {
    map.size[d] = sizes[d] >> 32 ? 0 : u32(sizes[d]);
    map.box[d] = u16(std::min(box[d], 65535u));
    if (d > 0) map.stride[d - 1] = strides[d - 1];
  }
  if (char const* const why = fault_in(map, element_strides, interleave)) return invalid(why);
  memset(out, 0, sizeof *out);
  memcpy(out, &map, sizeof map);
  return CUDA_SUCCESS;
}

}  // namespace
}  // namespace emu

extern "C" {

// For the emulator's own tests (golden/emulated.py): cuTensorMapEncodeTiled.
__attribute__((visibility("default"))) CUresult
emu_encode_tensor_map(CUtensorMap* out, CUtensorMapDataType type, cuuint32_t rank, void* address,
                      cuuint64_t const* sizes, cuuint64_t const* strides, cuuint32_t const* box,
                      cuuint32_t const* element_strides, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  return emu::encode_tiled(out, type, rank, address, sizes, strides, box, element_strides, interleave, swizzle,
                           promotion, fill);
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  constexpr size_t kAlign = 512;
  std::lock_guard const guard(emu::runtime().lock);
  *memory = aligned_alloc(kAlign, std::max(kAlign, (bytes + kAlign - 1) / kAlign * kAlign));
  if (*memory == nullptr) return emu::remember(cudaErrorMemoryAllocation);
  memset(*memory, 0xff, bytes);  // NaN in every format
  emu::allocations().add(*memory, bytes);
  return cudaSuccess;
}
cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t) { return cudaMalloc(memory, bytes); }
cudaError_t cudaFree(void* memory) {
  std::lock_guard const guard(emu::runtime().lock);
  if (memory == nullptr) return cudaSuccess;
  emu::allocations().remove(memory);
  free(memory);
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* memory, cudaStream_t) { return cudaFree(memory); }
cudaError_t cudaMemcpy(void* to, void const* from, size_t bytes, cudaMemcpyKind) {
  memmove(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, void const* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  memset(memory, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(memory, value, bytes);
}
cudaError_t cudaGetSymbolAddress(void** address, void const* symbol) {
  size_t bytes;
  *address = reinterpret_cast<void*>(emu::variable_address(symbol, &bytes));
  return *address ? cudaSuccess : emu::remember(cudaErrorInvalidSymbol);
}
cudaError_t cudaMemcpyToSymbol(void const* symbol, void const* from, size_t bytes, size_t offset, cudaMemcpyKind) {
  size_t size = 0;
  emu::u64 const address = emu::variable_address(symbol, &size);
  if (address == 0 || offset + bytes > size) return emu::remember(cudaErrorInvalidSymbol);
  memcpy(reinterpret_cast<void*>(address + offset), from, bytes);
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(char const* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  bool const known = strcmp(name, "cuTensorMapEncodeTiled") == 0;
  *function = known ? reinterpret_cast<void*>(emu::encode_tiled) : nullptr;
  if (result) *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
}
