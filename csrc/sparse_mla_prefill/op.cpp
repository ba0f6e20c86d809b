// sparse_mla_fwd on CUDA tensors: checks, makes the operands fit what a kernel reads, picks an implementation,
// launches.
#include "op.h"

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <tuple>

#include "common/device.h"
#include "common/torch_checks.h"

namespace dsa {
namespace {

constexpr char const* kOp = "sparse_mla_fwd";
constexpr int64_t kDV = 512;
constexpr int64_t kMaxInt = std::numeric_limits<int>::max();

// In order of preference.
constexpr SparseMlaPrefillImpl const* kImplList[] = {
#ifdef DSA_SM90
    &sm90::kSparseMlaPrefillFewHeads,
    &sm90::kSparseMlaPrefillHeads64,
#endif
#ifdef DSA_SM100
    &sm100::kSparseMlaPrefillHeads64,
    &sm100::kSparseMlaPrefillPair,
#endif
    nullptr,  // an array needs an element
};
constexpr std::span kImpls(kImplList, std::size(kImplList) - 1);

SparseMlaPrefillImpl const& choose(SparseMlaPrefillParams const& params, int compute_major) {
  std::string reasons;
  for (SparseMlaPrefillImpl const* impl : kImpls) {
    char const* reason =
        impl->compute_major != compute_major ? "made for another compute capability" : impl->why_unsupported(params);
    if (reason == nullptr) return *impl;
    reasons += std::string(reasons.empty() ? "" : "; ") + impl->name + ": " + reason;
  }
  check(false, kOp, ": no implementation takes this call on compute capability ", compute_major,
        ".x: ", reasons.empty() ? "none is built" : reasons);
  __builtin_unreachable();
}

struct Sizes {
  bool batched;
  int64_t batch, s_q, h_q, d_qk, s_kv, topk;
};

// Reads the sizes and checks every input against them.
Sizes check_inputs(ArgumentChecks const& checks, Tensor const& q, Tensor const& kv, Tensor const& idx, int64_t d_v,
                   std::optional<Tensor> const& attn_sink, std::optional<Tensor> const& topk_length) {
  checks.tensor("q", q, ScalarType::BFloat16);
  checks.tensor("kv", kv, ScalarType::BFloat16);
  checks.tensor("idx", idx, ScalarType::Int);
  check(q.dim() == 3 || q.dim() == 4, kOp, ": q has shape ", Shape(q),
        ", expected (s_q, h_q, d_qk) or (b, s_q, h_q, d_qk)");
  Sizes s{};
  s.batched = q.dim() == 4;
  int64_t const first = s.batched ? 1 : 0;
  s.batch = s.batched ? q.size(0) : 1;
  s.s_q = q.size(first);
  s.h_q = q.size(first + 1);
  s.d_qk = q.size(first + 2);
  check(s.d_qk == 576 || s.d_qk == 512, kOp, ": q has d_qk = ", s.d_qk, ", expected 576 or 512");
  check(d_v == kDV, kOp, ": d_v is ", d_v, ", expected 512");

  // Unbatched kv and idx may carry a head dimension of size 1, as other packages' tensors do.
  if (s.batched) {
    check(kv.dim() == 3 && kv.size(0) == s.batch && kv.size(2) == s.d_qk, kOp, ": kv has shape ", Shape(kv),
          ", expected (b, s_kv, d_qk) with b = ", s.batch, ", d_qk = ", s.d_qk);
    check(idx.dim() == 3 && idx.size(0) == s.batch && idx.size(1) == s.s_q, kOp, ": idx has shape ", Shape(idx),
          ", expected (b, s_q, topk) with b = ", s.batch, ", s_q = ", s.s_q);
  } else {
    check((kv.dim() == 2 || (kv.dim() == 3 && kv.size(1) == 1)) && kv.size(kv.dim() - 1) == s.d_qk, kOp,
          ": kv has shape ", Shape(kv), ", expected (s_kv, d_qk) or (s_kv, 1, d_qk) with d_qk = ", s.d_qk);
    check((idx.dim() == 2 || (idx.dim() == 3 && idx.size(1) == 1)) && idx.size(0) == s.s_q, kOp, ": idx has shape ",
          Shape(idx), ", expected (s_q, topk) or (s_q, 1, topk) with s_q = ", s.s_q);
  }
  s.s_kv = kv.size(first);
  s.topk = idx.size(idx.dim() - 1);

  if (attn_sink) {
    checks.tensor("attn_sink", *attn_sink, ScalarType::Float);
    checks.shape("attn_sink", *attn_sink, {s.h_q});
  }
  if (topk_length) {
    checks.tensor("topk_length", *topk_length, ScalarType::Int);
    checks.shape("topk_length", *topk_length, s.batched ? Shape{s.batch, s.s_q} : Shape{s.s_q});
  }
  check(s.h_q <= kMaxInt && s.s_kv <= kMaxInt && s.topk <= kMaxInt, kOp, ": h_q, s_kv or topk is beyond 2^31 - 1");
  check(s.batch == 0 || s.s_q <= kMaxInt / s.batch, kOp, ": q holds more than 2^31 - 1 tokens");
  return s;
}

void* stream_of(int32_t device) {
  void* stream = nullptr;
  check(current_stream(device, &stream), kOp, ": this torch gives no CUDA stream; it needs a CUDA build");
  return stream;
}

void set_kv(SparseMlaPrefillParams& p, Sizes const& s, Tensor const& kv) {
  p.kv = kv.const_data_ptr();
  p.kv_stride_batch = s.batched ? stride_or_zero(kv, 0) : 0;
  p.kv_stride_token = stride_or_zero(kv, s.batched ? 1 : 0);
}

// out [.., h_q, d_v] has aligned rows; max_logits and lse [.., h_q] are contiguous. q, kv and idx hold an element.
void launch(Sizes const& s, Tensor q, Tensor kv, Tensor idx, double scale, std::optional<Tensor> attn_sink,
            std::optional<Tensor> const& topk_length, Tensor const& out, Tensor const& max_logits, Tensor const& lse) {
  // TMA reads q, and knows no stride of 0.
  if (!has_aligned_rows(q) || is_expanded(q)) q = dense_copy(q);
  if (!has_aligned_rows(kv)) kv = dense_copy(kv);
  if (!last_dim_contiguous(idx)) idx = dense_copy(idx);
  if (attn_sink && !last_dim_contiguous(*attn_sink)) attn_sink = dense_copy(*attn_sink);

  int64_t const token = s.batched ? 1 : 0;
  auto const batch_stride = [&](Tensor const& t) { return s.batched ? stride_or_zero(t, 0) : 0; };
  SparseMlaPrefillParams p{};
  p.q = q.const_data_ptr();
  p.idx = static_cast<int32_t const*>(idx.const_data_ptr());
  p.attn_sink = attn_sink ? static_cast<float const*>(attn_sink->const_data_ptr()) : nullptr;
  p.topk_length = topk_length ? static_cast<int32_t const*>(topk_length->const_data_ptr()) : nullptr;
  p.out = out.mutable_data_ptr();
  p.max_logits = static_cast<float*>(max_logits.mutable_data_ptr());
  p.lse = static_cast<float*>(lse.mutable_data_ptr());
  p.batch = int(s.batch);
  p.s_q = int(s.s_q);
  p.h_q = int(s.h_q);
  p.s_kv = int(s.s_kv);
  p.topk = int(s.topk);
  p.d_qk = int(s.d_qk);
  p.d_v = int(kDV);
  p.scale = float(scale);
  p.q_stride_batch = batch_stride(q);
  p.q_stride_token = stride_or_zero(q, token);
  p.q_stride_head = stride_or_zero(q, token + 1);
  p.idx_stride_batch = batch_stride(idx);
  p.idx_stride_token = stride_or_zero(idx, token);
  p.topk_length_stride_batch = topk_length ? batch_stride(*topk_length) : 0;
  p.topk_length_stride_token = topk_length ? stride_or_zero(*topk_length, token) : 0;
  p.out_stride_batch = batch_stride(out);
  p.out_stride_token = stride_or_zero(out, token);
  p.out_stride_head = stride_or_zero(out, token + 1);

  int32_t const device = q.get_device_index();
  int major = 0;
  cudaError_t error = compute_major(device, &major);
  check(error == cudaSuccess, kOp, ": ", cudaGetErrorString(error));
  set_kv(p, s, kv);
  if (major == 10 && kv_batch_rows(p) < 0) {
    kv = dense_copy(kv);
    set_kv(p, s, kv);
  }
  SparseMlaPrefillImpl const& impl = choose(p, major);
  error = cudaError_t(impl.launch(p, stream_of(device)));
  check(error == cudaSuccess, kOp, ": ", impl.name, ": ", cudaGetErrorString(error));
}

void check_scale(double scale) {
  check(std::isfinite(float(scale)) && float(scale) > 0, kOp, ": scale is ", scale,
        ", expected a positive finite number");
}

// Fills the outputs, which have the right shapes; any strides that do not share elements.
void compute(Sizes const& s, Tensor const& q, Tensor const& kv, Tensor const& idx, double scale,
             std::optional<Tensor> const& attn_sink, std::optional<Tensor> const& topk_length, Tensor out,
             Tensor max_logits, Tensor lse) {
  if (s.batch == 0 || s.s_q == 0 || s.h_q == 0) return;
  if (s.s_kv == 0 || s.topk == 0) {  // no query has a valid key
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    torch::stable::fill_(out, 0.0);
    torch::stable::fill_(max_logits, -kInfinity);
    torch::stable::fill_(lse, kInfinity);
    return;
  }
  Tensor const kernel_out = has_aligned_rows(out) ? out : empty_dense(out);
  Tensor const kernel_max = max_logits.is_contiguous() ? max_logits : empty_dense(max_logits);
  Tensor const kernel_lse = lse.is_contiguous() ? lse : empty_dense(lse);
  launch(s, q, kv, idx, scale, attn_sink, topk_length, kernel_out, kernel_max, kernel_lse);
  if (kernel_out.get() != out.get()) torch::stable::copy_(out, kernel_out);
  if (kernel_max.get() != max_logits.get()) torch::stable::copy_(max_logits, kernel_max);
  if (kernel_lse.get() != lse.get()) torch::stable::copy_(lse, kernel_lse);
}

std::tuple<Tensor, Tensor, Tensor> sparse_mla_fwd(Tensor q, Tensor kv, Tensor idx, double scale, int64_t d_v,
                                                  std::optional<Tensor> attn_sink, std::optional<Tensor> topk_length) {
  ArgumentChecks const checks{kOp, q.get_device_index()};
  Sizes const s = check_inputs(checks, q, kv, idx, d_v, attn_sink, topk_length);
  check_scale(scale);
  torch::stable::accelerator::DeviceGuard const guard(checks.device);
  std::vector<int64_t> shape(q.sizes().begin(), q.sizes().end());
  shape.back() = kDV;
  Tensor out = torch::stable::new_empty(q, shape);
  shape.pop_back();
  Tensor max_logits = torch::stable::new_empty(q, shape, ScalarType::Float);
  Tensor lse = torch::stable::new_empty(q, shape, ScalarType::Float);
  compute(s, q, kv, idx, scale, attn_sink, topk_length, out, max_logits, lse);
  return {out, max_logits, lse};
}

void sparse_mla_fwd_out(Tensor q, Tensor kv, Tensor idx, double scale, int64_t d_v, std::optional<Tensor> attn_sink,
                        std::optional<Tensor> topk_length, Tensor out, Tensor max_logits, Tensor lse) {
  ArgumentChecks const checks{kOp, q.get_device_index()};
  Sizes const s = check_inputs(checks, q, kv, idx, d_v, attn_sink, topk_length);
  check_scale(scale);
  Shape expected(q);
  expected.sizes.back() = kDV;
  checks.tensor("out", out, ScalarType::BFloat16);
  checks.shape("out", out, expected);
  checks.writable("out", out);
  expected.sizes.pop_back();
  for (auto const& [name, tensor] : {std::pair("max_logits", &max_logits), std::pair("lse", &lse)}) {
    checks.tensor(name, *tensor, ScalarType::Float);
    checks.shape(name, *tensor, expected);
    checks.writable(name, *tensor);
  }
  torch::stable::accelerator::DeviceGuard const guard(checks.device);
  compute(s, q, kv, idx, scale, attn_sink, topk_length, out, max_logits, lse);
}

std::string sparse_mla_fwd_path(int64_t compute_major, int64_t h_q, int64_t d_qk, int64_t topk) {
  SparseMlaPrefillParams p{};  // as if every tensor were contiguous
  p.batch = p.s_q = p.s_kv = 1;
  p.h_q = int(h_q);
  p.topk = int(topk);
  p.d_qk = int(d_qk);
  p.d_v = int(kDV);
  p.scale = 1;
  p.q_stride_head = p.kv_stride_token = p.kv_stride_batch = d_qk;
  p.q_stride_token = p.q_stride_batch = h_q * d_qk;
  p.idx_stride_token = p.idx_stride_batch = topk;
  p.out_stride_head = kDV;
  p.out_stride_token = p.out_stride_batch = h_q * kDV;
  return choose(p, int(compute_major)).name;
}

}  // namespace
}  // namespace dsa

STABLE_TORCH_LIBRARY_IMPL(dsa_ext, CUDA, m) {
  m.impl("sparse_mla_fwd", TORCH_BOX(&dsa::sparse_mla_fwd));
  m.impl("sparse_mla_fwd_out", TORCH_BOX(&dsa::sparse_mla_fwd_out));
}
STABLE_TORCH_LIBRARY_IMPL(dsa_ext, CompositeExplicitAutograd, m) {
  m.impl("sparse_mla_fwd_path", TORCH_BOX(&dsa::sparse_mla_fwd_path));
}
