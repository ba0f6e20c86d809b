// sparse_mla_decode and its plan on CUDA tensors: checks, layouts, workspace, the choice of an implementation,
// launches.
#include "op.h"

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <tuple>

#include "common/device.h"
#include "common/torch_checks.h"
#include "plan.h"

namespace dsa {
namespace {

constexpr char const* kOp = "sparse_mla_decode";
constexpr char const* kPlanOp = "plan_sparse_mla_decode";
constexpr int64_t kDV = 512;
constexpr int64_t kMaxInt = std::numeric_limits<int>::max();
using MaybeTensor = std::optional<Tensor>;

// In order of preference.
constexpr SparseMlaDecodeImpl const* kImplList[] = {
#ifdef DSA_SM90
    &sm90::kSparseMlaDecodeFewHeads,
    &sm90::kSparseMlaDecodeHeads64,
#endif
#ifdef DSA_SM100
    &sm100::kSparseMlaDecodeHeads64,
    &sm100::kSparseMlaDecodePair,
#endif
    nullptr,  // an array needs an element
};
constexpr std::span kImpls(kImplList, std::size(kImplList) - 1);

SparseMlaDecodeImpl const& choose(KvFormat format, int h_q, int compute_major) {
  std::string reasons;
  for (SparseMlaDecodeImpl const* impl : kImpls) {
    char const* reason = impl->compute_major != compute_major ? "made for another compute capability"
                                                              : impl->why_unsupported(format, h_q);
    if (reason == nullptr) return *impl;
    reasons += std::string(reasons.empty() ? "" : "; ") + impl->name + ": " + reason;
  }
  check(false, kOp, ": no implementation takes this call on compute capability ", compute_major,
        ".x: ", reasons.empty() ? "none is built" : reasons);
  __builtin_unreachable();
}

int multiprocessors(char const* op, int32_t device) {
  int sms = 0;
  cudaError_t const e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  check(e == cudaSuccess, op, ": ", cudaGetErrorString(e));
  return sms;
}

void* stream_of(char const* op, int32_t device) {
  void* stream = nullptr;
  check(current_stream(device, &stream), op, ": this torch gives no CUDA stream; it needs a CUDA build");
  return stream;
}

// A copy with aligned rows, of a cache that has not: kernels read 16 bytes at a time.
template <class Format>
Tensor aligned_copy(Tensor const& cache) {
  if constexpr (Format::kScalesInLine) {
    return dense_copy(cache);
  } else {
    int64_t const stride = Format::page_stride(cache.size(1));
    Tensor const whole = torch::stable::new_empty(cache, {cache.size(0), stride});
    std::array const sizes{cache.size(0), cache.size(1), cache.size(2)}, strides{stride, cache.size(2), int64_t(1)};
    AtenTensorHandle view = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(whole.get(), 3, sizes.data(), strides.data(), 0, &view));
    Tensor copy(view);
    return torch::stable::copy_(copy, cache);
  }
}

struct Sizes {
  int64_t batch, s_q, h_q, d_qk;
};

// `cache` may become a copy, which must live until the launch.
template <class Format>
KvCache describe(char const* name, Tensor& cache) {
  int64_t const page_size = cache.size(1), item = cache.element_size();
  check(cache.size(0) * page_size <= kMaxInt, kOp, ": ", name, " has more than 2^31 - 1 slots");
  auto const layout = [&] {
    return KvCacheLayout{int(page_size), stride_or_zero(cache, 0) * item, stride_or_zero(cache, 1) * item};
  };
  if (cache.numel() > 0 && !rows_are_aligned<Format>(layout(), reinterpret_cast<uintptr_t>(cache.data_ptr())))
    cache = aligned_copy<Format>(cache);
  KvCache const c{cache.const_data_ptr(), layout(), int(cache.size(0) * page_size)};
  check(Format::kScalesInLine || page_size <= 1 || c.layout.token_stride == Format::kTokenBytes, kOp, ": ", name,
        " has pages with gaps, expected stride ", Format::kTokenBytes, " for format '", Format::kName, "'");
  // Kernels keep a row's place in 32 bits, in steps of 16 bytes, its scales' in steps of 8.
  check(cache.size(0) * c.layout.page_stride + Format::kTokenBytes <= int64_t(1) << 35, kOp, ": ", name,
        " spans more than 32 GiB");
  return c;
}

// The format that a cache's dtype and last dimension tell.
KvFormat format_of(char const* name, Tensor const& cache) {
  check(cache.dim() == 3, kOp, ": ", name, " has shape ", Shape(cache), ", expected (pages, page_size, bytes)");
  if (cache.scalar_type() == ScalarType::BFloat16) {
    check(cache.size(2) == KvBf16::kHeadDim, kOp, ": ", name, " has shape ", Shape(cache),
          ", expected (pages, page_size, 576) for bfloat16");
    return KvFormat::kBf16;
  }
  check(cache.scalar_type() == ScalarType::Byte, kOp, ": ", name, " has another dtype, expected uint8 or bfloat16");
  check(cache.size(2) == KvV32::kTokenBytes || cache.size(2) == KvV4::kTokenBytes, kOp, ": ", name, " has shape ",
        Shape(cache), ", expected (pages, page_size, 656) or (pages, page_size, 584) for uint8");
  return cache.size(2) == KvV32::kTokenBytes ? KvFormat::kV32 : KvFormat::kV4;
}

KvCache describe(KvFormat format, char const* name, Tensor& cache) {
  switch (format) {
    case KvFormat::kV32: return describe<KvV32>(name, cache);
    case KvFormat::kV4: return describe<KvV4>(name, cache);
    case KvFormat::kBf16: return describe<KvBf16>(name, cache);
  }
  __builtin_unreachable();
}

// Lengths are [b] or [b, s_q].
void check_length(ArgumentChecks const& checks, char const* name, Tensor const& length, int64_t batch, int64_t s_q) {
  checks.tensor(name, length, ScalarType::Int);
  checks.shape(name, length, length.dim() == 2 ? Shape{batch, s_q} : Shape{batch});
}
int64_t token_stride(Tensor const& length) { return length.dim() == 2 ? stride_or_zero(length, 1) : 0; }

// One cache and what is chosen from it. `cache` and `idx` may become copies, which must live until the launch.
KvSelection select(ArgumentChecks const& checks, Sizes const& s, KvFormat format, bool extra, Tensor& cache,
                   Tensor& idx, MaybeTensor const& length) {
  char const* const cache_name = extra ? "extra_kv_cache" : "kv_cache";
  char const* const idx_name = extra ? "extra_idx" : "idx";
  checks.tensor(cache_name, cache, format == KvFormat::kBf16 ? ScalarType::BFloat16 : ScalarType::Byte);
  check(format_of(cache_name, cache) == format, kOp, ": ", cache_name, " has another format than kv_cache");
  check(last_dim_contiguous(cache), kOp, ": ", cache_name, " has a last dimension that is not contiguous");
  checks.tensor(idx_name, idx, ScalarType::Int);
  check(idx.dim() == 3 && idx.size(0) == s.batch && idx.size(1) == s.s_q, kOp, ": ", idx_name, " has shape ",
        Shape(idx), ", expected (b, s_q, topk) with b = ", s.batch, ", s_q = ", s.s_q);
  check(idx.size(2) <= kMaxInt - kDecodeBlock, kOp, ": ", idx_name, " has more than 2^31 - 65 entries a query");
  if (!last_dim_contiguous(idx)) idx = dense_copy(idx);
  KvSelection k{};
  k.cache = describe(format, cache_name, cache);
  k.idx = static_cast<int32_t const*>(idx.const_data_ptr());
  k.idx_stride_batch = stride_or_zero(idx, 0);
  k.idx_stride_token = stride_or_zero(idx, 1);
  k.topk = int(idx.size(2));
  if (length) {
    check_length(checks, extra ? "extra_topk_length" : "topk_length", *length, s.batch, s.s_q);
    k.length = static_cast<int32_t const*>(length->const_data_ptr());
    k.length_stride_batch = stride_or_zero(*length, 0);
    k.length_stride_token = token_stride(*length);
  }
  return k;
}

constexpr char const* kTooManyKeys = ": all queries together have 2^31 blocks of 64 keys or more";

struct Inputs {
  Tensor q, kv_cache, idx;
  double scale;
  MaybeTensor topk_length, attn_sink, extra_kv_cache, extra_idx, extra_topk_length, plan;
};

Sizes check_q(ArgumentChecks const& checks, Inputs const& in) {
  checks.tensor("q", in.q, ScalarType::BFloat16);
  check(in.q.dim() == 4, kOp, ": q has shape ", Shape(in.q), ", expected (b, s_q, h_q, d_qk)");
  Sizes const s{in.q.size(0), in.q.size(1), in.q.size(2), in.q.size(3)};
  int64_t const d_qk = format_of("kv_cache", in.kv_cache) == KvFormat::kV4 ? KvV4::kHeadDim : KvV32::kHeadDim;
  check(s.d_qk == d_qk, kOp, ": q has d_qk = ", s.d_qk, ", expected ", d_qk, " for this kv_cache");
  check(s.h_q <= kMaxInt / 2 && (s.batch == 0 || s.s_q <= kMaxInt / s.batch), kOp,
        ": q holds more than 2^31 - 1 tokens or 2^30 heads");
  check(std::isfinite(float(in.scale)) && float(in.scale) > 0, kOp, ": scale is ", in.scale,
        ", expected a positive finite number");
  check(in.extra_kv_cache.has_value() == in.extra_idx.has_value(), kOp,
        ": extra_kv_cache and extra_idx are expected together");
  check(in.extra_idx || !in.extra_topk_length, kOp, ": extra_topk_length is given without extra_idx");
  if (in.attn_sink) {
    checks.tensor("attn_sink", *in.attn_sink, ScalarType::Float);
    checks.shape("attn_sink", *in.attn_sink, {s.h_q});
  }
  return s;
}

// Fills the outputs, which have the right shapes; any strides that do not share elements.
void compute(ArgumentChecks const& checks, Inputs in, Sizes const& s, Tensor out, Tensor lse) {
  KvFormat const format = format_of("kv_cache", in.kv_cache);
  SparseMlaDecodeParams p{};
  p.keys[0] = select(checks, s, format, false, in.kv_cache, in.idx, in.topk_length);
  if (in.extra_idx)
    p.keys[1] = select(checks, s, format, true, *in.extra_kv_cache, *in.extra_idx, in.extra_topk_length);
  if (s.batch == 0 || s.s_q == 0 || s.h_q == 0) return;
  if (p.keys[0].topk == 0 && p.keys[1].topk == 0) {
    torch::stable::fill_(out, 0.0);
    torch::stable::fill_(lse, std::numeric_limits<double>::infinity());
    return;
  }

  // TMA reads q, and knows no stride of 0.
  if (!has_aligned_rows(in.q) || is_expanded(in.q)) in.q = dense_copy(in.q);
  if (in.attn_sink && !last_dim_contiguous(*in.attn_sink)) in.attn_sink = dense_copy(*in.attn_sink);
  Tensor const kernel_out = has_aligned_rows(out) ? out : empty_dense(out);
  Tensor const kernel_lse = lse.is_contiguous() ? lse : empty_dense(lse);

  int const sms = multiprocessors(kOp, checks.device);
  DecodeShape const shape{int(s.batch * s.s_q), int(s.h_q), {p.keys[0].topk, p.keys[1].topk}};
  check(shape.is_countable(), kOp, kTooManyKeys);
  if (in.plan) {
    checks.tensor("plan", *in.plan, ScalarType::Int);
    int64_t const elements = plan_elements(shape.parts(sms)), given = in.plan->numel();
    check(in.plan->dim() == 1 && in.plan->is_contiguous() && (given == elements || given == elements + 1), kOp,
          ": plan has shape ", Shape(*in.plan), ", expected (", elements, ",) or, batch-invariant, (", elements + 1,
          ",), contiguous");
    p.batch_invariant = given == elements + 1;
    bool const even = p.keys[0].length == nullptr && p.keys[1].length == nullptr;
    if (!even || p.batch_invariant) p.plan = static_cast<int32_t const*>(in.plan->const_data_ptr());
  }
  int64_t const rows = shape.partial_slots(sms, p.batch_invariant) * shape.padded_heads();
  Tensor const partial_out = torch::stable::new_empty(in.q, {rows, kDV}, ScalarType::Float);
  Tensor const partial_lse = torch::stable::new_empty(in.q, {rows}, ScalarType::Float);
  p.partial_out = static_cast<float*>(partial_out.mutable_data_ptr());
  p.partial_lse = static_cast<float*>(partial_lse.mutable_data_ptr());

  p.q = in.q.const_data_ptr();
  p.attn_sink = in.attn_sink ? static_cast<float const*>(in.attn_sink->const_data_ptr()) : nullptr;
  p.out = kernel_out.mutable_data_ptr();
  p.lse = static_cast<float*>(kernel_lse.mutable_data_ptr());
  p.batch = int(s.batch);
  p.s_q = int(s.s_q);
  p.h_q = int(s.h_q);
  p.d_qk = int(s.d_qk);
  p.scale = float(in.scale);
  p.q_stride_batch = stride_or_zero(in.q, 0);
  p.q_stride_token = stride_or_zero(in.q, 1);
  p.q_stride_head = stride_or_zero(in.q, 2);
  p.out_stride_batch = stride_or_zero(kernel_out, 0);
  p.out_stride_token = stride_or_zero(kernel_out, 1);
  p.out_stride_head = stride_or_zero(kernel_out, 2);

  int major = 0;
  cudaError_t error = compute_major(checks.device, &major);
  check(error == cudaSuccess, kOp, ": ", cudaGetErrorString(error));
  SparseMlaDecodeImpl const& impl = choose(format, p.h_q, major);
  error = cudaError_t(impl.launch(p, format, stream_of(kOp, checks.device)));
  check(error == cudaSuccess, kOp, ": ", impl.name, ": ", cudaGetErrorString(error));
  if (kernel_out.get() != out.get()) torch::stable::copy_(out, kernel_out);
  if (kernel_lse.get() != lse.get()) torch::stable::copy_(lse, kernel_lse);
}

std::tuple<Tensor, Tensor> sparse_mla_decode(Tensor q, Tensor kv_cache, Tensor idx, double scale,
                                             MaybeTensor topk_length, MaybeTensor attn_sink, MaybeTensor extra_kv_cache,
                                             MaybeTensor extra_idx, MaybeTensor extra_topk_length, MaybeTensor plan) {
  ArgumentChecks const checks{kOp, q.get_device_index()};
  Inputs const in{q, kv_cache, idx, scale, topk_length, attn_sink, extra_kv_cache, extra_idx, extra_topk_length, plan};
  Sizes const s = check_q(checks, in);
  torch::stable::accelerator::DeviceGuard const guard(checks.device);
  Tensor out = torch::stable::new_empty(q, {s.batch, s.s_q, s.h_q, kDV});
  Tensor lse = torch::stable::new_empty(q, {s.batch, s.s_q, s.h_q}, ScalarType::Float);
  compute(checks, in, s, out, lse);
  return {out, lse};
}

void sparse_mla_decode_out(Tensor q, Tensor kv_cache, Tensor idx, double scale, MaybeTensor topk_length,
                           MaybeTensor attn_sink, MaybeTensor extra_kv_cache, MaybeTensor extra_idx,
                           MaybeTensor extra_topk_length, MaybeTensor plan, Tensor out, Tensor lse) {
  ArgumentChecks const checks{kOp, q.get_device_index()};
  Inputs const in{q, kv_cache, idx, scale, topk_length, attn_sink, extra_kv_cache, extra_idx, extra_topk_length, plan};
  Sizes const s = check_q(checks, in);
  checks.tensor("out", out, ScalarType::BFloat16);
  checks.shape("out", out, {s.batch, s.s_q, s.h_q, kDV});
  checks.writable("out", out);
  checks.tensor("lse", lse, ScalarType::Float);
  checks.shape("lse", lse, {s.batch, s.s_q, s.h_q});
  checks.writable("lse", lse);
  torch::stable::accelerator::DeviceGuard const guard(checks.device);
  compute(checks, in, s, out, lse);
}

DecodeShape plan_shape(int64_t batch, int64_t s_q, int64_t h_q, int64_t topk, int64_t extra_topk) {
  constexpr int64_t kMost = kMaxInt - kDecodeBlock;
  check(batch >= 0 && s_q >= 0 && h_q >= 0 && topk >= 0 && extra_topk >= 0 && h_q <= kMost / 2 && topk <= kMost &&
            extra_topk <= kMost && (batch == 0 || s_q <= kMaxInt / batch),
        kPlanOp, ": a size is negative or beyond 2^31");
  DecodeShape const shape{int(batch * s_q), int(h_q), {int(topk), int(extra_topk)}};
  check(shape.is_countable(), kPlanOp, kTooManyKeys);
  return shape;
}

int64_t plan_size(int64_t sms, int64_t batch, int64_t s_q, int64_t h_q, int64_t topk, int64_t extra_topk,
                  bool batch_invariant) {
  return plan_elements(plan_shape(batch, s_q, h_q, topk, extra_topk).parts(int(sms))) + batch_invariant;
}

void plan_out(MaybeTensor topk_length, int64_t batch, int64_t s_q, int64_t h_q, int64_t topk, int64_t extra_topk,
              MaybeTensor extra_topk_length, bool batch_invariant, Tensor out) {
  ArgumentChecks const checks{kPlanOp, out.get_device_index()};
  DecodePlanParams p{};
  p.shape = plan_shape(batch, s_q, h_q, topk, extra_topk);
  p.s_q = int(s_q);
  p.batch_invariant = batch_invariant;
  p.parts = p.shape.parts(multiprocessors(kPlanOp, checks.device));
  checks.tensor("out", out, ScalarType::Int);
  checks.shape("out", out, {plan_elements(p.parts) + batch_invariant});
  check(out.is_contiguous(), kPlanOp, ": out is not contiguous");
  MaybeTensor const* const lengths[] = {&topk_length, &extra_topk_length};
  for (int i = 0; i < 2; ++i) {
    if (!*lengths[i]) continue;
    Tensor const& length = **lengths[i];
    check_length(checks, i == 0 ? "topk_length" : "extra_topk_length", length, batch, s_q);
    p.length[i] = static_cast<int32_t const*>(length.const_data_ptr());
    p.length_stride_batch[i] = stride_or_zero(length, 0);
    p.length_stride_token[i] = token_stride(length);
  }
  p.plan = static_cast<int32_t*>(out.mutable_data_ptr());
  torch::stable::accelerator::DeviceGuard const guard(checks.device);
  auto const error = cudaError_t(launch_decode_plan(p, stream_of(kPlanOp, checks.device)));
  check(error == cudaSuccess, kPlanOp, ": ", cudaGetErrorString(error));
}

std::string path(int64_t compute_major, int64_t h_q, std::string format) {
  bool const v32 = format == KvV32::kName, v4 = format == KvV4::kName;
  check(v32 || v4 || format == KvBf16::kName, kOp, ": format is '", format, "', expected 'v32', 'v4' or 'bf16'");
  return choose(v32 ? KvFormat::kV32 : v4 ? KvFormat::kV4 : KvFormat::kBf16, int(h_q), int(compute_major)).name;
}

}  // namespace
}  // namespace dsa

STABLE_TORCH_LIBRARY_IMPL(dsa_ext, CUDA, m) {
  m.impl("sparse_mla_decode", TORCH_BOX(&dsa::sparse_mla_decode));
  m.impl("sparse_mla_decode_out", TORCH_BOX(&dsa::sparse_mla_decode_out));
  m.impl("plan_sparse_mla_decode_out", TORCH_BOX(&dsa::plan_out));
}
STABLE_TORCH_LIBRARY_IMPL(dsa_ext, CompositeExplicitAutograd, m) {
  m.impl("sparse_mla_decode_path", TORCH_BOX(&dsa::path));
  m.impl("plan_sparse_mla_decode_size", TORCH_BOX(&dsa::plan_size));
}
