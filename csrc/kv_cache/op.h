// pack_kv_cache, store_kv_cache and unpack_kv_cache, torch-free: what op.cpp hands to the launchers. One implementation
// for every architecture.
#pragma once

#include <cstdint>

#include "common/kv_format.h"

namespace dsa {

// Quantises tokens into slots of a cache. Without `slots`, token i goes to slot i and the other slots become zeros.
// Every slot is named at most once.
struct KvStoreParams {
  void const* kv;  // bf16 [tokens, head dim], rows 16-byte aligned
  int64_t kv_stride_token;
  int tokens;
  int32_t const* slots;  // [tokens] or null; what is outside [0, cache_slots) is skipped
  int64_t slots_stride;

  void* cache;
  KvCacheLayout layout;
  int cache_slots;
  bool ue8m0;  // scales are powers of two; always so in a format whose scales are e8m0
};

// Dequantises every slot.
struct KvUnpackParams {
  void const* cache;
  KvCacheLayout layout;
  int cache_slots;
  void* out;  // bf16 [cache_slots, head dim], contiguous, 16-byte aligned
};

// Both return a cudaError_t. `Format` is KvV32 or KvV4; there is a token and a slot.
template <class Format>
int launch_kv_store(KvStoreParams const&, void* stream);
template <class Format>
int launch_kv_unpack(KvUnpackParams const&, void* stream);

extern template int launch_kv_store<KvV32>(KvStoreParams const&, void*);
extern template int launch_kv_store<KvV4>(KvStoreParams const&, void*);
extern template int launch_kv_unpack<KvV32>(KvUnpackParams const&, void*);
extern template int launch_kv_unpack<KvV4>(KvUnpackParams const&, void*);

}  // namespace dsa
