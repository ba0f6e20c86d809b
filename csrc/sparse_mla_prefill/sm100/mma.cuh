// The thread that issues all products of a pair.
#pragma once

#include "config.h"
#include "sparse_mla_prefill/sm100/work.h"

namespace dsa::sm100::prefill {

template <class Config>
struct Products {
  using Shared = typename Config::SharedStorage;

  static constexpr int kStep = kUmmaK<bf16>;               // columns, or keys, a product
  static constexpr int kStepBytes = kStep * sizeof(bf16);  // along a row
  static constexpr int kStepsATile = kTileCols / kStep;
  static constexpr int kKeyTileBytes = kKeyTileElements * sizeof(bf16), kTileBytes = kTileElements * sizeof(bf16);
  static constexpr int kValueColumns = 256;  // a product: half of them of each CTA

  KernelParams const& params;
  Shared& smem;
  uint32_t const tmem;
  RingPlace<kKeyStages> key;
  RingPlace<kValueStages> value;
  uint32_t block = 0;  // of all the pair's tiles
  uint32_t q_phase = 0;

  __device__ __forceinline__ Products(KernelParams const& params, Shared& smem)
      : params(params), smem(smem), tmem(smem.tmem) {}

  // Q K^T runs a block ahead of P V, also into the next tile.
  __device__ __forceinline__ void run() {
    uint32_t const pairs = gridDim.x / 2;
    bool previous_is_first = false;
    for (uint64_t i = blockIdx.x / 2; i < params.tiles; i += pairs) {
      int const blocks = KernelParams::blocks(params.length(params.tile(uint32_t(i))));
      take_q();
#pragma unroll 1
      for (int n = 0; n < blocks; ++n, ++block) {
        scores(n + 1 == blocks);
        if (block > 0) values(block - 1, previous_is_first);
        previous_is_first = n == 0;
      }
    }
    values(block - 1, previous_is_first);
  }

 private:
  // Q of the next tile replaces this one's in tensor memory, and its last tiles are awaited.
  __device__ __forceinline__ void take_q() {
    if (block > 0) smem.s_full[(block - 1) % 2].wait((block - 1) / 2 % 2);
    copy_q<0, Config::kFirstPartTiles>();
    copy_q<Config::kFirstPartTiles, Config::kSecondPartTiles>();
    smem.q_full.wait(q_phase);
    q_phase ^= 1;
  }

  template <int kFirst, int kCount>
  __device__ __forceinline__ void copy_q() {
    constexpr int kPieceBytes = 16, kPieceColumns = 4;
    smem.key_full[key.stage].wait(key.phase);
    uint64_t const from = operand<kBlockH>(smem.key[key.stage]);
    CUTE_UNROLL
    for (int t = 0; t < kCount; ++t) CUTE_UNROLL
    for (int piece = 0; piece < kTileCols / 8; ++piece)
      copy_operand_to_tmem(tmem + kTmemQ + ((kFirst + t) * kTileCols / 8 + piece) * kPieceColumns,
                           umma_operand_at(from, t * kTileBytes + piece * kPieceBytes));
    commit_umma_pair(barrier(smem.key_empty[key.stage]), kBothCtas);
    key.advance();
  }

  __device__ __forceinline__ void scores(bool last_of_tile) {
    uint32_t const instruction = umma_instruction<bf16, kPairHeads>(kBlockK);
    uint32_t const buffer = block % 2, to = tmem + kTmemS + buffer * kTmemSColumns;
    smem.key_full[key.stage].wait(key.phase);
    smem.s_empty[buffer].wait(block / 2 % 2 ^ 1);
    after_tmem_handover();
    uint64_t const keys = operand<kOwnKeys>(smem.key[key.stage]), tail = operand<kBlockH>(smem.q_tail);
    CUTE_UNROLL
    for (int t = 0; t < Config::kTiles; ++t) CUTE_UNROLL
    for (int k = 0; k < kStepsATile; ++k) {
      uint64_t const b = umma_operand_at(keys, t * kKeyTileBytes + k * kStepBytes);
      bool const accumulate = t > 0 || k > 0;
      if (t < kTmemQTiles)
        umma_pair_from_tmem(to, tmem + kTmemQ + (t * kStepsATile + k) * kStep / 2, b, instruction, accumulate);
      else
        umma<bf16, 2>(to, umma_operand_at(tail, (t - kTmemQTiles) * kTileBytes + k * kStepBytes), b, instruction,
                      accumulate);
    }
    commit_umma_pair(barrier(smem.key_empty[key.stage]), kBothCtas);
    commit_umma_pair(barrier(smem.s_full[buffer]), kBothCtas);
    if (last_of_tile) commit_umma_pair(barrier(smem.q_empty), kBothCtas);
    key.advance();
  }

  __device__ __forceinline__ void values(uint32_t of_block, bool first_of_tile) {
    uint32_t const instruction = umma_instruction<bf16, kPairHeads, Major::K, Major::MN>(kValueColumns);
    constexpr int kKeysBytes = kStep * kTileCols * sizeof(bf16);  // of so many keys in a tile
    smem.value_full[value.stage].wait(value.phase);
    smem.p_full.wait(of_block % 2);
    after_tmem_handover();
    uint64_t const p = operand<kBlockH>(smem.p), v = value_operand(smem.value[value.stage]);
    CUTE_UNROLL
    for (int half = 0; half < kDV / kValueColumns; ++half) CUTE_UNROLL
    for (int k = 0; k < kBlockK / kStep; ++k)
      umma<bf16, 2>(tmem + kTmemO + half * kValueColumns / 2, umma_operand_at(p, k * kStepBytes),
                    umma_operand_at(v, half * 2 * kTileBytes + k * kKeysBytes), instruction, k > 0 || !first_of_tile);
    commit_umma_pair(barrier(smem.value_empty[value.stage]), kBothCtas);
    commit_umma_pair(barrier(smem.o_full), kBothCtas);
    value.advance();
  }

  // The first step of an operand that begins here.
  template <int kRows>
  static __device__ __forceinline__ uint64_t operand(bf16* tile) {
    return umma_operand(local_tile(make_tensor(make_smem_ptr(tile), RowTile<kRows>{}), Shape<Int<kRows>, Int<kStep>>{},
                                   make_coord(_0{}, _0{})));
  }
  static __device__ __forceinline__ uint64_t value_operand(bf16* tiles) {
    return umma_operand<Major::MN>(local_tile(make_tensor(make_smem_ptr(tiles), ValueTiles{}),
                                              Shape<Int<2 * kTileCols>, Int<kStep>>{}, make_coord(_0{}, _0{})));
  }
  static __device__ __forceinline__ uint64_t* barrier(Barrier& b) { return reinterpret_cast<uint64_t*>(&b); }
};

}  // namespace dsa::sm100::prefill
