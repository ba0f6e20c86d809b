// One decoder a family of instructions: nullptr for an instruction that is not theirs, or that they do not know.
#pragma once

#include "ptx.h"

namespace emu {

Execute decode_integer(Instruction&, Mnemonic&);      // add sub mul mad div rem min max neg abs
Execute decode_bits(Instruction&, Mnemonic&);         // and or xor not shl shr shf bfe bfi brev popc clz prmt lop3
Execute decode_float(Instruction&, Mnemonic&);        // add sub mul fma div rcp sqrt ex2 ... on f32, f32x2, bf16
Execute decode_select(Instruction&, Mnemonic&);       // setp selp
Execute decode_convert(Instruction&, Mnemonic&);      // cvt mov
Execute decode_load_store(Instruction&, Mnemonic&);   // ld st cvta
Execute decode_atomic(Instruction&, Mnemonic&);       // atom red
Execute decode_warp(Instruction&, Mnemonic&);         // shfl vote elect redux activemask bar.warp
Execute decode_barrier(Instruction&, Mnemonic&);      // bar barrier fence membar
Execute decode_mbarrier(Instruction&, Mnemonic&);     // mbarrier
Execute decode_cluster(Instruction&, Mnemonic&);      // barrier.cluster mapa getctarank
Execute decode_cp_async(Instruction&, Mnemonic&);     // cp.async
Execute decode_bulk(Instruction&, Mnemonic&);         // cp.async.bulk st.async
Execute decode_tma(Instruction&, Mnemonic&);          // cp.async.bulk.tensor
Execute decode_matrix_move(Instruction&, Mnemonic&);  // ldmatrix stmatrix
Execute decode_wgmma(Instruction&, Mnemonic&);        // wgmma
Execute decode_tmem(Instruction&, Mnemonic&);         // tcgen05.alloc dealloc ld st wait cp
Execute decode_tcgen05(Instruction&, Mnemonic&);      // tcgen05.mma commit fence
Execute decode_hint(Instruction&, Mnemonic&);         // without effect here; trap

void do_nothing(Warp&, Instruction const&, u32);

}  // namespace emu
