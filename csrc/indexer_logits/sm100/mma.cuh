// The products, issued by one thread: keys of a tile (M) times the block's queries and heads (N), into tensor memory.
#pragma once

#include "config.h"

namespace dsa::sm100::indexer_logits {

template <class Config>
struct Products {
  using Shared = typename Config::SharedStorage;
  static constexpr int kStages = Config::kStages;

  Split const split;
  Shared& smem;

  // By one whole warp, which has allocated tensor memory, and frees it.
  __device__ __forceinline__ void run() {
    uint32_t const tmem = smem.tmem;
    int const done = __reduce_max_sync(~0u, elect_one_sync() ? issue(tmem) : 0);
    // What is summed last must be loaded.
#pragma unroll 1
    for (int n = max(done - split.slots(), 0); n < done; ++n) smem.acc_empty[split.slot(n)].wait(split.parity(n));
    free_tmem(tmem, kTmemColumns);
  }

 private:
  // Returns how many tiles there were.
  __device__ __forceinline__ int issue(uint32_t tmem) {
    uint32_t const instruction = umma_instruction<e4m3, kTileKeys>(split.columns());
    int n = 0;
    RingPlace<kStages> tile{.phase = 0};
    for (RingPlace<Config::kUnits> unit{.phase = 0};; unit.advance()) {
      smem.q_full[unit.index].wait(unit.phase);
      int const tiles = smem.unit[unit.index].tiles;
      if (tiles == 0) return n;
      smem.q_empty[unit.index].arrive();  // that has been read; commits are of products alone
      uint64_t const queries = operand<typename Config::QLayout>(smem.q[unit.index]);
#pragma unroll 1
      for (int t = 0; t < tiles; ++t, ++n, tile.advance()) {
        int const slot = split.slot(n);
        smem.acc_empty[slot].wait(split.parity(n) ^ 1);
        smem.full[tile.index].wait(tile.phase);
        after_tmem_handover();
        uint64_t const keys = operand<typename Config::KeyLayout>(smem.keys(tile.index));
        CUTE_UNROLL
        for (int k = 0; k < Config::kDim; k += kUmmaK<e4m3>)
          umma<e4m3>(tmem + slot * split.columns(), umma_operand_at(keys, k), umma_operand_at(queries, k), instruction,
                     k > 0);
        commit(smem.empty[tile.index]);
        if (t + 1 == tiles) commit(smem.q_empty[unit.index]);
        commit(smem.acc_full[slot]);
      }
    }
  }

  template <class Layout>
  static __device__ __forceinline__ uint64_t operand(e4m3* matrix) {
    auto const whole = make_tensor(make_smem_ptr(matrix), Layout{});
    return umma_operand(local_tile(whole, Shape<Int<size<0>(Layout{})>, Int<kUmmaK<e4m3>>>{}, make_coord(_0{}, _0{})));
  }

  static __device__ __forceinline__ void commit(Barrier& barrier) {
    commit_umma(reinterpret_cast<uint64_t*>(&barrier));
  }
};

}  // namespace dsa::sm100::indexer_logits
