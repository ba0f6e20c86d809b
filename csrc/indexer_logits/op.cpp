// indexer_logits, paged_indexer_logits and its plan on CUDA tensors: checks, layouts, the choice of an implementation,
// launches.
#include "op.h"

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <limits>
#include <optional>
#include <span>
#include <string>

#include "common/device.h"
#include "common/torch_checks.h"

namespace dsa {
namespace {

constexpr char const* kOp = "indexer_logits";
constexpr char const* kPagedOp = "paged_indexer_logits";
constexpr char const* kPlanOp = "plan_paged_indexer_logits";
constexpr int64_t kMaxInt = std::numeric_limits<int>::max();
constexpr int64_t kMaxColumns = kMaxInt - 4096;  // columns are counted in steps of up to so many
constexpr int64_t kScaleBytes = sizeof(float);
using MaybeTensor = std::optional<Tensor>;

// In order of preference.
constexpr IndexerLogitsImpl const* kImplList[] = {
#ifdef DSA_SM90
    &sm90::kIndexerLogits,
#endif
#ifdef DSA_SM100
    &sm100::kIndexerLogits,
#endif
    nullptr,  // an array needs an element
};
constexpr std::span kImpls(kImplList, std::size(kImplList) - 1);

IndexerLogitsImpl const& choose(char const* op, int heads, int dim, int page_size, int compute_major) {
  std::string reasons;
  for (IndexerLogitsImpl const* impl : kImpls) {
    char const* reason = impl->compute_major != compute_major ? "made for another compute capability"
                                                              : impl->why_unsupported(heads, dim, page_size);
    if (reason == nullptr) return *impl;
    reasons += std::string(reasons.empty() ? "" : "; ") + impl->name + ": " + reason;
  }
  check(false, op, ": no implementation takes this call on compute capability ", compute_major,
        ".x: ", reasons.empty() ? "none is built" : reasons);
  __builtin_unreachable();
}

IndexerLogitsImpl const& choose_here(char const* op, IndexerQueries const& q, int page_size, int32_t device) {
  int major = 0;
  cudaError_t const error = compute_major(device, &major);
  check(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
  return choose(op, q.heads, q.dim, page_size, major);
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

void check_launch(char const* op, IndexerLogitsImpl const& impl, int status) {
  check(status == cudaSuccess, op, ": ", impl.name, ": ", cudaGetErrorString(cudaError_t(status)));
}

// TMA reads q and k, and knows no stride of 0.
void make_readable(Tensor& t) {
  if (!has_aligned_rows(t) || is_expanded(t)) t = dense_copy(t);
}

void check_out(ArgumentChecks const& checks, Tensor const& out, Shape const& shape) {
  check(out.scalar_type() == ScalarType::Float || out.scalar_type() == ScalarType::BFloat16, checks.op,
        ": out has another dtype, expected float32 or bfloat16");
  checks.tensor("out", out, out.scalar_type());
  checks.shape("out", out, shape);
  checks.writable("out", out);
  check(last_dim_contiguous(out), checks.op, ": out has a last dimension that is not contiguous");
}

// Everything but the strides by batch, which q, weights and out of the ragged form have not. `q` may become a copy,
// which must live until the launch. The dimension of tokens is `at`, that of heads follows.
IndexerQueries describe(Tensor& q, Tensor const& weights, Tensor const& out, int64_t at) {
  make_readable(q);
  IndexerQueries p{};
  p.q = q.const_data_ptr();
  p.weights = static_cast<float const*>(weights.const_data_ptr());
  p.out = out.mutable_data_ptr();
  p.out_bf16 = out.scalar_type() == ScalarType::BFloat16;
  p.batch = at == 0 ? 1 : int(q.size(0));
  p.tokens = int(q.size(at));
  p.heads = int(q.size(at + 1));
  p.dim = int(q.size(at + 2));
  p.columns = int(out.size(at + 1));
  p.q_stride_token = stride_or_zero(q, at);
  p.q_stride_head = stride_or_zero(q, at + 1);
  p.weights_stride_head = stride_or_zero(weights, weights.dim() - 1);
  p.out_stride_token = stride_or_zero(out, at);
  return p;
}

// --- ragged

struct RaggedInputs {
  Tensor q, k;
  MaybeTensor k_scale;
  Tensor weights, k_start, k_end;
};

void check_ragged(ArgumentChecks const& checks, RaggedInputs const& in) {
  checks.tensor("q", in.q, ScalarType::Float8_e4m3fn);
  check(in.q.dim() == 3, kOp, ": q has shape ", Shape(in.q), ", expected (s_q, h, d)");
  checks.tensor("k", in.k, ScalarType::Float8_e4m3fn);
  int64_t const s_q = in.q.size(0), heads = in.q.size(1), dim = in.q.size(2);
  check(in.k.dim() == 2 && in.k.size(1) == dim, kOp, ": k has shape ", Shape(in.k),
        ", expected (s_k, d) with d = ", dim);
  check(s_q <= kMaxInt && in.k.size(0) <= kMaxColumns, kOp, ": q or k holds more than 2^31 rows");
  check(in.k_scale.has_value(), kOp, ": k_scale is None, expected a tensor on a CUDA device");
  checks.tensor("k_scale", *in.k_scale, ScalarType::Float);
  checks.shape("k_scale", *in.k_scale, {in.k.size(0)});
  checks.tensor("weights", in.weights, ScalarType::Float);
  checks.shape("weights", in.weights, {s_q, heads});
  checks.tensor("k_start", in.k_start, ScalarType::Int);
  checks.shape("k_start", in.k_start, {s_q});
  checks.tensor("k_end", in.k_end, ScalarType::Int);
  checks.shape("k_end", in.k_end, {s_q});
}

void compute_ragged(ArgumentChecks const& checks, RaggedInputs in, Tensor const& out) {
  if (out.numel() == 0) return;
  IndexerQueries p = describe(in.q, in.weights, out, 0);
  p.weights_stride_token = stride_or_zero(in.weights, 0);
  make_readable(in.k);
  IndexerKeys keys{};
  keys.k = in.k.const_data_ptr();
  keys.k_stride = stride_or_zero(in.k, 0);
  keys.scale = static_cast<float const*>(in.k_scale->const_data_ptr());
  keys.scale_stride = stride_or_zero(*in.k_scale, 0);
  keys.start = static_cast<int32_t const*>(in.k_start.const_data_ptr());
  keys.end = static_cast<int32_t const*>(in.k_end.const_data_ptr());
  keys.start_stride = stride_or_zero(in.k_start, 0);
  keys.end_stride = stride_or_zero(in.k_end, 0);
  IndexerLogitsImpl const& impl = choose_here(kOp, p, 0, checks.device);
  check_launch(kOp, impl, impl.launch(p, keys, stream_of(kOp, checks.device)));
}

Tensor indexer_logits(Tensor q, Tensor k, MaybeTensor k_scale, Tensor weights, Tensor k_start, Tensor k_end,
                      std::string out_dtype) {
  ArgumentChecks const checks{kOp, q.get_device_index()};
  RaggedInputs const in{q, k, k_scale, weights, k_start, k_end};
  check_ragged(checks, in);
  bool const bf16 = out_dtype == "bfloat16";
  check(bf16 || out_dtype == "float32", kOp, ": out_dtype is ", out_dtype, ", expected float32 or bfloat16");
  torch::stable::accelerator::DeviceGuard const guard(checks.device);
  Tensor const out =
      torch::stable::new_empty(q, {q.size(0), k.size(0)}, bf16 ? ScalarType::BFloat16 : ScalarType::Float);
  compute_ragged(checks, in, out);
  return out;
}

void indexer_logits_out(Tensor q, Tensor k, MaybeTensor k_scale, Tensor weights, Tensor k_start, Tensor k_end,
                        Tensor out) {
  ArgumentChecks const checks{kOp, q.get_device_index()};
  RaggedInputs const in{q, k, k_scale, weights, k_start, k_end};
  check_ragged(checks, in);
  check_out(checks, out, {q.size(0), k.size(0)});
  torch::stable::accelerator::DeviceGuard const guard(checks.device);
  compute_ragged(checks, in, out);
}

// --- paged

struct PagedInputs {
  Tensor q, k_cache, weights, context_lens, block_table;
  int64_t max_context_len;
  MaybeTensor plan;
};

void check_lens(ArgumentChecks const& checks, Tensor const& lens, int64_t batch, int64_t tokens) {
  checks.tensor("context_lens", lens, ScalarType::Int);
  checks.shape("context_lens", lens, lens.dim() == 2 ? Shape{batch, tokens} : Shape{batch});
}

void check_paged(ArgumentChecks const& checks, PagedInputs const& in) {
  checks.tensor("q", in.q, ScalarType::Float8_e4m3fn);
  check(in.q.dim() == 4, kPagedOp, ": q has shape ", Shape(in.q), ", expected (b, next_n, h, d)");
  int64_t const batch = in.q.size(0), tokens = in.q.size(1), heads = in.q.size(2), dim = in.q.size(3);
  check(batch == 0 || tokens <= kMaxInt / batch, kPagedOp, ": q holds more than 2^31 - 1 tokens");
  checks.tensor("k_cache", in.k_cache, ScalarType::Byte);
  check(in.k_cache.dim() == 3 && in.k_cache.size(2) == dim + kScaleBytes, kPagedOp, ": k_cache has shape ",
        Shape(in.k_cache), ", expected (pages, page_size, d + 4) with d = ", dim);
  int64_t const page_size = in.k_cache.size(1);
  check(last_dim_contiguous(in.k_cache) && (page_size <= 1 || in.k_cache.stride(1) == dim + kScaleBytes), kPagedOp,
        ": k_cache has pages with gaps, expected strides (any, d + 4, 1)");
  check(page_size == 0 || in.k_cache.size(0) <= kMaxInt / page_size, kPagedOp,
        ": k_cache holds more than 2^31 - 1 tokens");
  checks.tensor("weights", in.weights, ScalarType::Float);
  checks.shape("weights", in.weights,
               in.weights.dim() == 3 ? Shape{batch, tokens, heads} : Shape{batch * tokens, heads});
  check_lens(checks, in.context_lens, batch, tokens);
  checks.tensor("block_table", in.block_table, ScalarType::Int);
  check(in.block_table.dim() == 2 && in.block_table.size(0) == batch, kPagedOp, ": block_table has shape ",
        Shape(in.block_table), ", expected (b, pages of a request) with b = ", batch);
  check(in.block_table.size(1) <= kMaxInt, kPagedOp, ": block_table has more than 2^31 - 1 columns");
  check(in.max_context_len >= 0 && in.max_context_len <= kMaxColumns, kPagedOp, ": max_context_len is ",
        in.max_context_len, ", expected 0 <= max_context_len < 2^31 - 4096");
}

void compute_paged(ArgumentChecks const& checks, PagedInputs in, Tensor out) {
  int const parts = multiprocessors(kPagedOp, checks.device);
  if (in.plan) {
    checks.tensor("plan", *in.plan, ScalarType::Int);
    check(in.plan->dim() == 1 && in.plan->is_contiguous(), kPagedOp, ": plan has shape ", Shape(*in.plan),
          ", expected (", indexer_plan_elements(parts), ",), contiguous");
    checks.shape("plan", *in.plan, {indexer_plan_elements(parts)});
  }
  if (out.numel() == 0) return;
  IndexerQueries p = describe(in.q, in.weights, out, 1);
  p.q_stride_batch = stride_or_zero(in.q, 0);
  p.out_stride_batch = stride_or_zero(out, 0);
  bool const flat = in.weights.dim() == 2;
  p.weights_stride_batch = stride_or_zero(in.weights, 0) * (flat ? in.q.size(1) : 1);
  p.weights_stride_token = stride_or_zero(in.weights, flat ? 0 : 1);
  PagedIndexerKeys keys{};
  keys.cache = in.k_cache.const_data_ptr();
  keys.pages = int(in.k_cache.size(0));
  keys.page_size = int(in.k_cache.size(1));
  keys.page_stride = stride_or_zero(in.k_cache, 0);
  keys.table_width = int(in.block_table.size(1));
  if (in.k_cache.numel() == 0 || keys.table_width == 0) {
    torch::stable::fill_(out, -std::numeric_limits<double>::infinity());
    return;
  }
  IndexerLogitsImpl const& impl = choose_here(kPagedOp, p, keys.page_size, checks.device);
  constexpr int64_t kAlignment = 16;
  check(reinterpret_cast<uintptr_t>(keys.cache) % kAlignment == 0 && keys.page_stride % kAlignment == 0, kPagedOp,
        ": k_cache starts or steps from page to page at an address that is not a multiple of 16 bytes, expected ",
        "aligned pages on a CUDA device");
  keys.context_lens = static_cast<int32_t const*>(in.context_lens.const_data_ptr());
  keys.lens_per_token = in.context_lens.dim() == 2;
  keys.lens_stride_batch = stride_or_zero(in.context_lens, 0);
  keys.lens_stride_token = keys.lens_per_token ? stride_or_zero(in.context_lens, 1) : 0;
  keys.block_table = static_cast<int32_t const*>(in.block_table.const_data_ptr());
  keys.table_stride_batch = stride_or_zero(in.block_table, 0);
  keys.table_stride_page = stride_or_zero(in.block_table, 1);
  if (in.plan) keys.plan = static_cast<int32_t const*>(in.plan->const_data_ptr());
  check_launch(kPagedOp, impl, impl.launch_paged(p, keys, stream_of(kPagedOp, checks.device)));
}

Tensor paged_indexer_logits(Tensor q, Tensor k_cache, Tensor weights, Tensor context_lens, Tensor block_table,
                            int64_t max_context_len, MaybeTensor plan) {
  ArgumentChecks const checks{kPagedOp, q.get_device_index()};
  PagedInputs const in{q, k_cache, weights, context_lens, block_table, max_context_len, plan};
  check_paged(checks, in);
  torch::stable::accelerator::DeviceGuard const guard(checks.device);
  Tensor const out = torch::stable::new_empty(q, {q.size(0), q.size(1), max_context_len}, ScalarType::Float);
  compute_paged(checks, in, out);
  return out;
}

void paged_indexer_logits_out(Tensor q, Tensor k_cache, Tensor weights, Tensor context_lens, Tensor block_table,
                              int64_t max_context_len, MaybeTensor plan, Tensor out) {
  ArgumentChecks const checks{kPagedOp, q.get_device_index()};
  PagedInputs const in{q, k_cache, weights, context_lens, block_table, max_context_len, plan};
  check_paged(checks, in);
  check_out(checks, out, {q.size(0), q.size(1), max_context_len});
  torch::stable::accelerator::DeviceGuard const guard(checks.device);
  compute_paged(checks, in, out);
}

void plan_out(Tensor context_lens, int64_t page_size, int64_t next_n, Tensor out) {
  ArgumentChecks const checks{kPlanOp, context_lens.get_device_index()};
  check(page_size >= 1 && page_size <= kMaxInt, kPlanOp, ": page_size is ", page_size, ", expected at least 1");
  check(next_n >= 1 && next_n <= kMaxInt, kPlanOp, ": next_n is ", next_n, ", expected at least 1");
  int64_t const batch = context_lens.dim() > 0 ? context_lens.size(0) : 0;
  check(batch == 0 || next_n <= kMaxInt / batch, kPlanOp, ": there are more than 2^31 - 1 tokens");
  check_lens(checks, context_lens, batch, next_n);
  int const parts = multiprocessors(kPlanOp, checks.device);
  checks.tensor("out", out, ScalarType::Int);
  checks.shape("out", out, {indexer_plan_elements(parts)});
  check(out.is_contiguous(), kPlanOp, ": out is not contiguous");
  IndexerPlanParams p{};
  p.context_lens = static_cast<int32_t const*>(context_lens.const_data_ptr());
  p.lens_per_token = context_lens.dim() == 2;
  p.lens_stride_batch = stride_or_zero(context_lens, 0);
  p.lens_stride_token = p.lens_per_token ? stride_or_zero(context_lens, 1) : 0;
  p.batch = int(batch);
  p.tokens = int(next_n);
  p.parts = parts;
  p.plan = static_cast<int32_t*>(out.mutable_data_ptr());
  torch::stable::accelerator::DeviceGuard const guard(checks.device);
  auto const error = cudaError_t(launch_indexer_plan(p, stream_of(kPlanOp, checks.device)));
  check(error == cudaSuccess, kPlanOp, ": ", cudaGetErrorString(error));
}

int64_t plan_size(int64_t sms) {
  check(sms >= 1 && sms <= kMaxInt / 4, kPlanOp, ": sms is ", sms, ", expected at least 1");
  return indexer_plan_elements(int(sms));
}

std::string path(int64_t compute_major, int64_t heads, int64_t dim, int64_t page_size) {
  return choose(page_size == 0 ? kOp : kPagedOp, int(heads), int(dim), int(page_size), int(compute_major)).name;
}

}  // namespace
}  // namespace dsa

STABLE_TORCH_LIBRARY_IMPL(dsa_ext, CUDA, m) {
  m.impl("indexer_logits", TORCH_BOX(&dsa::indexer_logits));
  m.impl("indexer_logits_out", TORCH_BOX(&dsa::indexer_logits_out));
  m.impl("paged_indexer_logits", TORCH_BOX(&dsa::paged_indexer_logits));
  m.impl("paged_indexer_logits_out", TORCH_BOX(&dsa::paged_indexer_logits_out));
  m.impl("plan_paged_indexer_logits_out", TORCH_BOX(&dsa::plan_out));
}
STABLE_TORCH_LIBRARY_IMPL(dsa_ext, CompositeExplicitAutograd, m) {
  m.impl("indexer_logits_path", TORCH_BOX(&dsa::path));
  m.impl("plan_paged_indexer_logits_size", TORCH_BOX(&dsa::plan_size));
}
