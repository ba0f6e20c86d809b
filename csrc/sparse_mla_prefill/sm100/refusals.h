// What none of the sparse prefill kernels on Blackwell takes.
#pragma once

#include <limits>

#include "sparse_mla_prefill/op.h"

namespace dsa::sm100 {

inline char const* why_unsupported(SparseMlaPrefillParams const& p) {
  if (p.d_qk != 576 && p.d_qk != 512) return "d_qk is neither 576 nor 512";
  if (p.d_v != 512) return "d_v is not 512";
  int64_t const batch_rows = kv_batch_rows(p);
  if (batch_rows < 0) return "the sequences of kv are not whole rows apart";
  if ((p.batch - 1) * batch_rows + p.s_kv > std::numeric_limits<int>::max()) return "kv spans more than 2^31 - 1 rows";
  return nullptr;
}

}  // namespace dsa::sm100
