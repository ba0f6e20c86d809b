// The kernels of both formats; no part of them depends on the architecture.
#include "kernels.cuh"

namespace dsa {

template <class Format>
int launch_kv_store(KvStoreParams const& p, void* stream) {
  auto* const kernel = rows_are_aligned<Format>(p.layout, reinterpret_cast<uintptr_t>(p.cache))
                           ? kv_cache::store_kernel<Format, true>
                           : kv_cache::store_kernel<Format, false>;
  return kv_cache::launch(kernel, p, p.slots != nullptr ? p.tokens : p.cache_slots, stream);
}

template <class Format>
int launch_kv_unpack(KvUnpackParams const& p, void* stream) {
  auto* const kernel = rows_are_aligned<Format>(p.layout, reinterpret_cast<uintptr_t>(p.cache))
                           ? kv_cache::unpack_kernel<Format, true>
                           : kv_cache::unpack_kernel<Format, false>;
  return kv_cache::launch(kernel, p, p.cache_slots, stream);
}

template int launch_kv_store<KvV32>(KvStoreParams const&, void*);
template int launch_kv_store<KvV4>(KvStoreParams const&, void*);
template int launch_kv_unpack<KvV32>(KvUnpackParams const&, void*);
template int launch_kv_unpack<KvV4>(KvUnpackParams const&, void*);

}  // namespace dsa
