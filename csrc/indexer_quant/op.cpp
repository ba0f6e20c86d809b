// quantize_indexer, prepare_indexer and store_indexer_cache on CUDA tensors: checks, layouts, launches.
#include "op.h"

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "common/device.h"
#include "common/torch_checks.h"

namespace dsa {
namespace {

constexpr int64_t kMaxInt = std::numeric_limits<int>::max();
constexpr int64_t kElementsOfABlock = 1024;  // in quantize.cuh

bool choose(char const* op, char const* name, std::string const& value, char const* yes, char const* no) {
  check(value == yes || value == no, op, ": ", name, " is '", value, "', expected '", yes, "' or '", no, "'");
  return value == yes;
}

bool is_head_dim(int64_t d) { return d == 32 || d == 64 || d == 128; }

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

Tensor with_aligned_rows(Tensor const& t) { return has_aligned_rows(t) ? t : dense_copy(t); }

// Whether one stride leads from each row to the next, through all leading dimensions; `stride` is set if so.
bool rows_are_evenly_spaced(Tensor const& t, int64_t* stride) {
  int64_t rows = 1;
  *stride = 0;
  for (int64_t d = t.dim() - 2; d >= 0; --d) {
    if (t.size(d) <= 1) continue;
    if (rows == 1) *stride = t.stride(d);
    if (t.stride(d) != *stride * rows) return false;
    rows *= t.size(d);
  }
  return true;
}

Tensor new_codes(Tensor const& like) { return torch::stable::new_empty(like, like.sizes(), ScalarType::Float8_e4m3fn); }

std::tuple<Tensor, Tensor> quantize_indexer(Tensor x, std::string scale_format) {
  ArgumentChecks const checks{"quantize_indexer", x.get_device_index()};
  bool const ue8m0 = choose(checks.op, "scale_format", scale_format, "ue8m0", "fp32");
  check(x.is_cuda(), checks.op, ": x is on another device, expected cuda");
  ScalarType const type = x.scalar_type();
  check(type == ScalarType::BFloat16 || type == ScalarType::Half || type == ScalarType::Float, checks.op,
        ": x has another dtype, expected bfloat16 or float16 or float32");
  check(x.dim() >= 1 && is_head_dim(x.size(x.dim() - 1)), checks.op, ": x has shape ", Shape(x),
        ", expected (..., d) with d = 32 or 64 or 128");
  int64_t const head_dim = x.size(x.dim() - 1), vectors = x.numel() / head_dim;
  check(x.numel() <= kMaxInt * kElementsOfABlock, checks.op, ": x holds more than 2^41 elements");

  torch::stable::accelerator::DeviceGuard const guard(checks.device);
  QuantizeIndexerParams p{};
  if (!has_aligned_rows(x) || !rows_are_evenly_spaced(x, &p.x_stride)) {
    x = dense_copy(x);
    p.x_stride = head_dim;
  }
  Tensor const codes = new_codes(x);
  std::vector<int64_t> const leading(x.sizes().begin(), x.sizes().end() - 1);
  Tensor const scale = torch::stable::new_empty(x, leading, ScalarType::Float);
  p.x = x.const_data_ptr();
  p.vectors = vectors;
  p.element = type == ScalarType::BFloat16 ? IndexerElement::kBf16
              : type == ScalarType::Half   ? IndexerElement::kFp16
                                           : IndexerElement::kFp32;
  p.head_dim = int(head_dim);
  p.ue8m0 = ue8m0;
  p.codes = codes.mutable_data_ptr();
  p.scale = static_cast<float*>(scale.mutable_data_ptr());
  if (vectors > 0) check_launch(checks.op, launch_quantize_indexer(p, stream_of(checks)));
  return {codes, scale};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> prepare_indexer(Tensor q, Tensor k, Tensor weights, Tensor cos, Tensor sin,
                                                           std::string rope, bool hadamard, std::string scale_format) {
  using P = PrepareIndexerParams;
  ArgumentChecks const checks{"prepare_indexer", q.get_device_index()};
  bool const interleaved = choose(checks.op, "rope", rope, "interleaved", "half");
  bool const ue8m0 = choose(checks.op, "scale_format", scale_format, "ue8m0", "fp32");
  checks.tensor("q", q, ScalarType::BFloat16);
  check(q.dim() == 3 && q.size(2) == P::kHeadDim, checks.op, ": q has shape ", Shape(q), ", expected (s, h, ",
        P::kHeadDim, ")");
  int64_t const tokens = q.size(0), heads = q.size(1);
  checks.tensor("k", k, ScalarType::BFloat16);
  checks.shape("k", k, {tokens, P::kHeadDim});
  bool const weights_are_bf16 = weights.scalar_type() == ScalarType::BFloat16;
  checks.tensor("weights", weights, weights_are_bf16 ? ScalarType::BFloat16 : ScalarType::Float);
  checks.shape("weights", weights, {tokens, heads});
  check(last_dim_contiguous(weights), checks.op, ": weights has a last dimension with gaps, expected stride 1");
  checks.tensor("cos", cos, ScalarType::Float);
  checks.shape("cos", cos, {tokens, P::kRope / 2});
  checks.tensor("sin", sin, ScalarType::Float);
  checks.shape("sin", sin, {tokens, P::kRope / 2});
  check(heads < kMaxInt && tokens <= kMaxInt / (heads + 1), checks.op, ": q and k hold more than 2^31 - 1 vectors");

  torch::stable::accelerator::DeviceGuard const guard(checks.device);
  Tensor const q_codes = new_codes(q), k_codes = new_codes(k);
  Tensor const k_scale = torch::stable::new_empty(q, {tokens}, ScalarType::Float);
  Tensor const folded = torch::stable::new_empty(q, {tokens, heads}, ScalarType::Float);
  if (tokens > 0) {
    q = with_aligned_rows(q), k = with_aligned_rows(k), cos = with_aligned_rows(cos), sin = with_aligned_rows(sin);
    P p{};
    p.q = q.const_data_ptr();
    p.q_stride_token = stride_or_zero(q, 0);
    p.q_stride_head = stride_or_zero(q, 1);
    p.k = k.const_data_ptr();
    p.k_stride_token = stride_or_zero(k, 0);
    p.weights = weights.const_data_ptr();
    p.weights_stride_token = stride_or_zero(weights, 0);
    p.weights_are_bf16 = weights_are_bf16;
    p.cos = static_cast<float const*>(cos.const_data_ptr());
    p.sin = static_cast<float const*>(sin.const_data_ptr());
    p.cos_stride_token = stride_or_zero(cos, 0);
    p.sin_stride_token = stride_or_zero(sin, 0);
    p.tokens = int(tokens);
    p.heads = int(heads);
    p.interleaved = interleaved;
    p.hadamard = hadamard;
    p.ue8m0 = ue8m0;
    p.weight_factor = heads > 0 ? float(1 / std::sqrt(double(heads * P::kHeadDim))) : 0.f;
    p.q_codes = q_codes.mutable_data_ptr();
    p.k_codes = k_codes.mutable_data_ptr();
    p.k_scale = static_cast<float*>(k_scale.mutable_data_ptr());
    p.weights_folded = static_cast<float*>(folded.mutable_data_ptr());
    check_launch(checks.op, launch_prepare_indexer(p, stream_of(checks)));
  }
  return {q_codes, k_codes, k_scale, folded};
}

void store_indexer_cache(Tensor k, Tensor k_scale, Tensor k_cache, Tensor slots) {
  ArgumentChecks const checks{"store_indexer_cache", k.get_device_index()};
  checks.tensor("k", k, ScalarType::Float8_e4m3fn);
  check(k.dim() == 2 && is_head_dim(k.size(1)), checks.op, ": k has shape ", Shape(k),
        ", expected (n, d) with d = 32 or 64 or 128");
  int64_t const n = k.size(0), d = k.size(1), token_bytes = d + IndexerKeyCache::kScaleBytes;
  check(n <= kMaxInt, checks.op, ": k holds more than 2^31 - 1 tokens");
  checks.tensor("k_scale", k_scale, ScalarType::Float);
  checks.shape("k_scale", k_scale, {n});
  checks.tensor("k_cache", k_cache, ScalarType::Byte);
  check(k_cache.dim() == 3 && k_cache.size(2) == token_bytes, checks.op, ": k_cache has shape ", Shape(k_cache),
        ", expected (pages, page_size, d + 4) with d = ", d);
  int64_t const pages = k_cache.size(0), page_size = k_cache.size(1);
  check(last_dim_contiguous(k_cache) && (page_size <= 1 || k_cache.stride(1) == token_bytes), checks.op,
        ": k_cache has pages with gaps, expected strides (any, ", token_bytes, ", 1)");
  check(page_size == 0 || (page_size <= kMaxInt && pages <= kMaxInt / page_size), checks.op,
        ": k_cache holds more than 2^31 - 1 tokens");
  checks.writable("k_cache", k_cache);
  checks.tensor("slots", slots, ScalarType::Int);
  checks.shape("slots", slots, {n});
  if (n == 0 || pages * page_size == 0) return;

  torch::stable::accelerator::DeviceGuard const guard(checks.device);
  k = with_aligned_rows(k);
  StoreIndexerCacheParams p{};
  p.k = k.const_data_ptr();
  p.k_stride_token = stride_or_zero(k, 0);
  p.k_scale = static_cast<float const*>(k_scale.const_data_ptr());
  p.k_scale_stride = stride_or_zero(k_scale, 0);
  p.slots = static_cast<int32_t const*>(slots.const_data_ptr());
  p.slots_stride = stride_or_zero(slots, 0);
  p.tokens = int(n);
  p.cache = k_cache.mutable_data_ptr();
  p.layout = {int(page_size), int(d), stride_or_zero(k_cache, 0)};
  p.cache_slots = int(pages * page_size);
  check_launch(checks.op, launch_store_indexer_cache(p, stream_of(checks)));
}

}  // namespace
}  // namespace dsa

STABLE_TORCH_LIBRARY_IMPL(dsa_ext, CUDA, m) {
  m.impl("quantize_indexer", TORCH_BOX(&dsa::quantize_indexer));
  m.impl("prepare_indexer", TORCH_BOX(&dsa::prepare_indexer));
  m.impl("store_indexer_cache", TORCH_BOX(&dsa::store_indexer_cache));
}
