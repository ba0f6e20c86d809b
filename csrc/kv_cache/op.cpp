// pack_kv_cache, unpack_kv_cache and store_kv_cache on CUDA tensors: checks, layouts, launches.
#include "op.h"

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <array>
#include <limits>
#include <optional>
#include <string>

#include "common/device.h"
#include "common/torch_checks.h"

namespace dsa {
namespace {

constexpr int64_t kMaxInt = std::numeric_limits<int>::max();

// Calls f with the trait of the format: f(KvV32{}) or f(KvV4{}).
template <class F>
auto with_format(char const* op, std::string const& format, F const& f) {
  if (format == KvV32::kName) return f(KvV32{});
  check(format == KvV4::kName, op, ": format is '", format, "', expected 'v32' or 'v4'");
  return f(KvV4{});
}

template <class Format>
bool is_ue8m0(char const* op, std::string const& scale_format) {
  bool const fp32 = scale_format == "fp32";
  check(fp32 || scale_format == "ue8m0", op, ": scale_format is '", scale_format, "', expected 'ue8m0' or 'fp32'");
  check(!fp32 || Format::kScaleBytes == 4, op, ": scale_format is 'fp32', expected 'ue8m0' for format '", Format::kName,
        "', whose scales are e8m0");
  return !fp32;
}

template <class Format>
void check_kv(ArgumentChecks const& checks, Tensor const& kv) {
  checks.tensor("kv", kv, ScalarType::BFloat16);
  check(kv.dim() == 2 && kv.size(1) == Format::kHeadDim, checks.op, ": kv has shape ", Shape(kv), ", expected (n, ",
        Format::kHeadDim, ") for format '", Format::kName, "'");
  check(kv.size(0) <= kMaxInt, checks.op, ": kv holds more than 2^31 - 1 tokens");
}

struct Cache {
  KvCacheLayout layout;
  int slots;
};

// [n, bytes] is one page of n tokens.
template <class Format>
Cache describe(ArgumentChecks const& checks, char const* name, Tensor const& cache) {
  constexpr int kBytes = Format::kTokenBytes;
  checks.tensor(name, cache, ScalarType::Byte);
  int64_t const dim = cache.dim();
  check((dim == 3 || (dim == 2 && Format::kScalesInLine)) && cache.size(dim - 1) == kBytes, checks.op, ": ", name,
        " has shape ", Shape(cache), ", expected ", Format::kScalesInLine ? "(n, bytes) or " : "",
        "(pages, page_size, bytes) with bytes = ", kBytes, " for format '", Format::kName, "'");
  int64_t const page_size = cache.size(dim - 2), pages = dim == 3 ? cache.size(0) : 1;
  int64_t const token_stride = stride_or_zero(cache, dim - 2);
  check(last_dim_contiguous(cache), checks.op, ": ", name, " has a last dimension with gaps, expected stride 1");
  check(Format::kScalesInLine || page_size <= 1 || token_stride == kBytes, checks.op, ": ", name,
        " has pages with gaps, expected stride ", kBytes, " for format '", Format::kName, "'");
  check(page_size == 0 || (page_size <= kMaxInt && pages <= kMaxInt / page_size), checks.op, ": ", name,
        " holds more than 2^31 - 1 tokens");
  int64_t const page_stride = dim == 3 ? stride_or_zero(cache, 0) : 0;
  return {{int(page_size), page_stride, token_stride}, int(pages * page_size)};
}

void* stream_of(ArgumentChecks const& checks) {
  void* stream = nullptr;
  check(current_stream(checks.device, &stream), checks.op, ": this torch gives no CUDA stream; it needs a CUDA build");
  return stream;
}

void check_launch(char const* op, int status) {
  auto const error = cudaError_t(status);
  check(error != cudaErrorNoKernelImageForDevice && error != cudaErrorInvalidDeviceFunction, op,
        ": no implementation takes this call on this device: none is built for its architecture");
  check(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
}

// `slots` is null or holds an index a token. There is a token, and a slot.
template <class Format>
void store_tokens(ArgumentChecks const& checks, Tensor kv, Tensor const* slots, Tensor const& kv_cache,
                  Cache const& cache, bool ue8m0) {
  if (!has_aligned_rows(kv)) kv = dense_copy(kv);
  KvStoreParams p{};
  p.kv = kv.const_data_ptr();
  p.kv_stride_token = stride_or_zero(kv, 0);
  p.tokens = int(kv.size(0));
  if (slots != nullptr) {
    p.slots = static_cast<int32_t const*>(slots->const_data_ptr());
    p.slots_stride = stride_or_zero(*slots, 0);
  }
  p.cache = kv_cache.mutable_data_ptr();
  p.layout = cache.layout;
  p.cache_slots = cache.slots;
  p.ue8m0 = ue8m0;
  check_launch(checks.op, launch_kv_store<Format>(p, stream_of(checks)));
}

Tensor as_strided(Tensor const& t, std::array<int64_t, 3> const& sizes, std::array<int64_t, 3> const& strides) {
  AtenTensorHandle view = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(t.get(), 3, sizes.data(), strides.data(), 0, &view));
  return Tensor(view);
}

// Pages whose bytes beyond the last token's are zero.
template <class Format>
Tensor new_pages(Tensor const& kv, int64_t pages, int64_t page_size) {
  int64_t const stride = Format::page_stride(page_size), used = page_size * Format::kTokenBytes;
  Tensor const whole = torch::stable::new_empty(kv, {pages, stride}, ScalarType::Byte);
  if (pages > 0 && used < stride) {
    Tensor gaps = whole;
    gaps = torch::stable::narrow(gaps, 1, used, stride - used);
    torch::stable::fill_(gaps, 0.0);
  }
  return as_strided(whole, {pages, page_size, Format::kTokenBytes}, {stride, Format::kTokenBytes, 1});
}

Tensor pack_kv_cache(Tensor kv, std::string format, std::optional<int64_t> page_size, std::string scale_format) {
  ArgumentChecks const checks{"pack_kv_cache", kv.get_device_index()};
  return with_format(checks.op, format, [&]<class Format>(Format) {
    bool const ue8m0 = is_ue8m0<Format>(checks.op, scale_format);
    check_kv<Format>(checks, kv);
    check(page_size || Format::kScalesInLine, checks.op, ": page_size is None, expected an int for format '",
          Format::kName, "', which exists in pages only");
    check(!page_size || (*page_size >= 1 && *page_size <= kMaxInt), checks.op, ": page_size is ", page_size.value_or(0),
          ", expected 1 <= page_size < 2^31");
    torch::stable::accelerator::DeviceGuard const guard(checks.device);
    int64_t const n = kv.size(0);
    Tensor const packed = page_size ? new_pages<Format>(kv, (n + *page_size - 1) / *page_size, *page_size)
                                    : torch::stable::new_empty(kv, {n, Format::kTokenBytes}, ScalarType::Byte);
    if (n > 0) store_tokens<Format>(checks, kv, nullptr, packed, describe<Format>(checks, "the result", packed), ue8m0);
    return packed;
  });
}

Tensor unpack_kv_cache(Tensor packed, std::string format) {
  ArgumentChecks const checks{"unpack_kv_cache", packed.get_device_index()};
  return with_format(checks.op, format, [&]<class Format>(Format) {
    Cache const cache = describe<Format>(checks, "packed", packed);
    torch::stable::accelerator::DeviceGuard const guard(checks.device);
    Shape shape(packed);
    shape.sizes.back() = Format::kHeadDim;
    Tensor const out = torch::stable::new_empty(packed, shape.sizes, ScalarType::BFloat16);
    KvUnpackParams const p{packed.const_data_ptr(), cache.layout, cache.slots, out.mutable_data_ptr()};
    if (cache.slots > 0) check_launch(checks.op, launch_kv_unpack<Format>(p, stream_of(checks)));
    return out;
  });
}

void store_kv_cache(Tensor kv, Tensor kv_cache, Tensor slots, std::string format, std::string scale_format) {
  ArgumentChecks const checks{"store_kv_cache", kv.get_device_index()};
  with_format(checks.op, format, [&]<class Format>(Format) {
    bool const ue8m0 = is_ue8m0<Format>(checks.op, scale_format);
    check_kv<Format>(checks, kv);
    Cache const cache = describe<Format>(checks, "kv_cache", kv_cache);
    checks.writable("kv_cache", kv_cache);
    checks.tensor("slots", slots, ScalarType::Int);
    checks.shape("slots", slots, {kv.size(0)});
    torch::stable::accelerator::DeviceGuard const guard(checks.device);
    if (kv.size(0) > 0 && cache.slots > 0) store_tokens<Format>(checks, kv, &slots, kv_cache, cache, ue8m0);
  });
}

}  // namespace
}  // namespace dsa

STABLE_TORCH_LIBRARY_IMPL(dsa_ext, CUDA, m) {
  m.impl("pack_kv_cache", TORCH_BOX(&dsa::pack_kv_cache));
  m.impl("unpack_kv_cache", TORCH_BOX(&dsa::unpack_kv_cache));
  m.impl("store_kv_cache", TORCH_BOX(&dsa::store_kv_cache));
}
