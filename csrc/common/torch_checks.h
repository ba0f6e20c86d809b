// Checks on tensors and how their strides are read: with bindings.cpp and the op.cpp files, all that sees torch.
//
// The Python layer has validated a call before it comes here and raises the better exception types. These checks repeat
// what memory safety depends on, in the same words, for callers of torch.ops.dsa_ext.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace dsa {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// As STD_TORCH_CHECK, a RuntimeError in Python, but without the source file's path in front of the message. The parts
// are formatted only on failure.
template <class... Parts>
inline void check(bool ok, Parts const&... parts) {
  if (ok) [[likely]]
    return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// Prints like a Python tuple.
struct Shape {
  std::vector<int64_t> sizes;
  explicit Shape(Tensor const& t) : sizes(t.sizes().begin(), t.sizes().end()) {}
  Shape(std::initializer_list<int64_t> s) : sizes(s) {}

  bool operator==(Shape const&) const = default;
  friend std::ostream& operator<<(std::ostream& out, Shape const& shape) {
    out << '(';
    for (size_t i = 0; i < shape.sizes.size(); ++i) out << (i ? ", " : "") << shape.sizes[i];
    return out << (shape.sizes.size() == 1 ? ",)" : ")");
  }
};

inline char const* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float: return "float32";
    case ScalarType::Int: return "int32";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Float8_e4m3fn: return "float8_e4m3fn";
    default: return "another dtype";
  }
}

// What every tensor argument of an op is held to.
struct ArgumentChecks {
  char const* op;
  int32_t device;  // index of the CUDA device

  void tensor(char const* name, Tensor const& t, ScalarType type) const {
    check(t.is_cuda() && t.get_device_index() == device, op, ": ", name,
          " is on another device, expected cuda:", device);
    check(t.scalar_type() == type, op, ": ", name, " has another dtype, expected ", name_of(type));
  }

  void shape(char const* name, Tensor const& t, Shape const& expected) const {
    Shape const shape(t);
    check(shape == expected, op, ": ", name, " has shape ", shape, ", expected ", expected);
  }

  // Two elements at one address would be written by two threads. Sufficient, and exact for every slice, transpose and
  // expansion of a contiguous tensor.
  void writable(char const* name, Tensor const& t) const {
    if (t.numel() == 0) return;
    std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
    for (int64_t d = 0; d < t.dim(); ++d)
      if (t.size(d) > 1) dims.emplace_back(t.stride(d), t.size(d));
    std::sort(dims.begin(), dims.end());
    int64_t last = 0;  // offset of the last element of the dimensions before
    for (auto const& [stride, size] : dims) {
      check(stride > last, op, ": ", name, " has elements that share memory, expected one place for each");
      last += stride * (size - 1);
    }
  }
};

// The stride of a dimension of size 1 is never used and may be anything.
inline int64_t stride_or_zero(Tensor const& t, int64_t dim) { return t.size(dim) > 1 ? t.stride(dim) : 0; }

inline bool last_dim_contiguous(Tensor const& t) { return t.size(t.dim() - 1) <= 1 || t.stride(t.dim() - 1) == 1; }

// Rows that 16-byte copies and TMA can read or write where they lie.
inline bool has_aligned_rows(Tensor const& t) {
  constexpr uintptr_t kAlignment = 16;
  if (!last_dim_contiguous(t) || reinterpret_cast<uintptr_t>(t.data_ptr()) % kAlignment != 0) return false;
  for (int64_t d = 0; d + 1 < t.dim(); ++d)
    if (stride_or_zero(t, d) * int64_t(t.element_size()) % int64_t(kAlignment) != 0) return false;
  return true;
}

inline bool is_expanded(Tensor const& t) {
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) > 1 && t.stride(d) == 0) return true;
  return false;
}

// Contiguous and aligned, whatever t is: torch's contiguous() keeps a misaligned start.
inline Tensor empty_dense(Tensor const& t) { return torch::stable::new_empty(t, t.sizes()); }

inline Tensor dense_copy(Tensor const& t) {
  Tensor copy = empty_dense(t);
  return torch::stable::copy_(copy, t);
}

}  // namespace dsa
