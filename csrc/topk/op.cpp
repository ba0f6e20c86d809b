// topk_indices on CUDA tensors: checks, launch.
#include "op.h"

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <limits>
#include <optional>

#include "common/device.h"
#include "common/torch_checks.h"

namespace dsa {
namespace {

constexpr char const* kOp = "topk_indices";
constexpr int64_t kMaxInt = std::numeric_limits<int>::max();
using MaybeTensor = std::optional<Tensor>;

struct Inputs {
  Tensor logits;
  int64_t k;
  MaybeTensor lengths, row_starts, block_table;
  std::optional<int64_t> page_size;
  MaybeTensor offsets;
};

struct PerRow {
  int32_t const* values;
  int64_t stride;
};

PerRow per_row(ArgumentChecks const& checks, char const* name, MaybeTensor const& t, int64_t rows) {
  if (!t) return {nullptr, 0};
  checks.tensor(name, *t, ScalarType::Int);
  checks.shape(name, *t, {rows});
  return {static_cast<int32_t const*>(t->const_data_ptr()), stride_or_zero(*t, 0)};
}

// Everything but the output. `in.logits` may become a copy, which must live until the launch.
TopkParams describe(ArgumentChecks const& checks, Inputs& in) {
  bool const bf16 = in.logits.scalar_type() == ScalarType::BFloat16;
  checks.tensor("logits", in.logits, bf16 ? ScalarType::BFloat16 : ScalarType::Float);
  check(in.logits.dim() == 2, kOp, ": logits has shape ", Shape(in.logits), ", expected (rows, columns)");
  int64_t const rows = in.logits.size(0), columns = in.logits.size(1);
  check(rows <= kMaxInt && columns <= kMaxInt, kOp, ": logits has more than 2^31 - 1 rows or columns");
  check(last_dim_contiguous(in.logits), kOp, ": logits has a last dimension with gaps, expected stride 1");
  check(in.k >= 1 && in.k <= kMaxTopk, kOp, ": k is ", in.k, ", expected 1 <= k <= ", kMaxTopk);

  PerRow const row_starts = per_row(checks, "row_starts", in.row_starts, rows);
  PerRow const lengths = per_row(checks, "lengths", in.lengths, rows);
  PerRow const offsets = per_row(checks, "offsets", in.offsets, rows);
  TopkParams p{};
  p.bf16 = bf16;
  p.rows = int(rows);
  p.columns = int(columns);
  p.k = int(in.k);
  p.row_starts = row_starts.values;
  p.row_starts_stride = row_starts.stride;
  p.lengths = lengths.values;
  p.lengths_stride = lengths.stride;
  p.offsets = offsets.values;
  p.offsets_stride = offsets.stride;

  check(in.block_table.has_value() == in.page_size.has_value(), kOp,
        ": block_table and page_size are expected together");
  if (in.block_table) {
    Tensor const& table = *in.block_table;
    check(!in.offsets, kOp, ": offsets and block_table are given, expected one of them");
    checks.tensor("block_table", table, ScalarType::Int);
    check(table.dim() == 2, kOp, ": block_table has shape ", Shape(table), ", expected (b, pages)");
    int64_t const requests = table.size(0);
    check(requests > 0 ? rows % requests == 0 : rows == 0, kOp, ": block_table has ", requests,
          " requests, expected a divisor of the ", rows, " rows");
    check(table.size(1) <= kMaxInt, kOp, ": block_table has more than 2^31 - 1 pages");
    check(*in.page_size >= 1 && *in.page_size <= kMaxInt, kOp, ": page_size is ", *in.page_size,
          ", expected 1 <= page_size < 2^31");
    p.block_table = static_cast<int32_t const*>(table.const_data_ptr());
    p.block_table_stride_request = stride_or_zero(table, 0);
    p.block_table_stride_page = stride_or_zero(table, 1);
    p.pages = int(table.size(1));
    p.page_size = int(*in.page_size);
    p.rows_per_request = requests > 0 ? int(rows / requests) : 1;
  }

  // Vectors begin at multiples of 16 bytes, which elements must not straddle.
  if (in.logits.numel() > 0 && reinterpret_cast<uintptr_t>(in.logits.data_ptr()) % in.logits.element_size() != 0)
    in.logits = dense_copy(in.logits);
  p.logits = in.logits.const_data_ptr();
  p.stride_row = stride_or_zero(in.logits, 0);
  return p;
}

// `out` has the right shape.
void compute(ArgumentChecks const& checks, TopkParams& p, Tensor out) {
  if (p.rows == 0) return;
  p.out = static_cast<int32_t*>(out.mutable_data_ptr());
  p.out_stride_row = stride_or_zero(out, 0);
  void* stream = nullptr;
  check(current_stream(checks.device, &stream), kOp, ": this torch gives no CUDA stream; it needs a CUDA build");
  auto const error = cudaError_t(launch_topk(p, stream));
  check(error != cudaErrorNoKernelImageForDevice && error != cudaErrorInvalidDeviceFunction, kOp,
        ": no implementation takes this call on this device: none is built for its architecture");
  check(error == cudaSuccess, kOp, ": ", cudaGetErrorString(error));
}

Tensor topk_indices(Tensor logits, int64_t k, MaybeTensor lengths, MaybeTensor row_starts, MaybeTensor block_table,
                    std::optional<int64_t> page_size, MaybeTensor offsets) {
  ArgumentChecks const checks{kOp, logits.get_device_index()};
  Inputs in{logits, k, lengths, row_starts, block_table, page_size, offsets};
  torch::stable::accelerator::DeviceGuard const guard(checks.device);
  TopkParams p = describe(checks, in);
  Tensor const out = torch::stable::new_empty(logits, {logits.size(0), k}, ScalarType::Int);
  compute(checks, p, out);
  return out;
}

void topk_indices_out(Tensor logits, int64_t k, MaybeTensor lengths, MaybeTensor row_starts, MaybeTensor block_table,
                      std::optional<int64_t> page_size, MaybeTensor offsets, Tensor out) {
  ArgumentChecks const checks{kOp, logits.get_device_index()};
  Inputs in{logits, k, lengths, row_starts, block_table, page_size, offsets};
  torch::stable::accelerator::DeviceGuard const guard(checks.device);
  TopkParams p = describe(checks, in);
  checks.tensor("out", out, ScalarType::Int);
  checks.shape("out", out, {logits.size(0), k});
  checks.writable("out", out);
  check(last_dim_contiguous(out), kOp, ": out has a last dimension with gaps, expected stride 1");
  compute(checks, p, out);
}

}  // namespace
}  // namespace dsa

STABLE_TORCH_LIBRARY_IMPL(dsa_ext, CUDA, m) {
  m.impl("topk_indices", TORCH_BOX(&dsa::topk_indices));
  m.impl("topk_indices_out", TORCH_BOX(&dsa::topk_indices_out));
}
