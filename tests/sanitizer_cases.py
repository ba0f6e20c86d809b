"""A few tiny calls of every implementation, small enough for compute-sanitizer's slowest tool. Not a pytest file:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python tests/sanitizer_cases.py

and so on with racecheck, synccheck, initcheck. Without torch's caching every tensor is an allocation of its own, so
that a read past its end is seen. The reference runs on the CPU, out of the tools' sight. Exit status 1 if a
result is wrong.
"""

import math
import sys
from dataclasses import replace

import torch
from cases import SparseMlaFwdCase as Case
from cases import SparseMlaFwdInputs, make_inputs
from oracle import verify

import dsa_ext
from dsa_ext._build_info import path

TRICKY = {"invalid": 0.2, "poison": True, "attn_sink": "edge", "topk_length": "edge", "s_kv": 400}
CASES = [
    case
    for h_q in (128, 64, 32, 16, 8)
    for d_qk in (576, 512)
    for case in (
        Case(h_q=h_q, d_qk=d_qk, topk=65, s_q=2),
        Case(h_q=h_q, d_qk=d_qk, topk=130, s_q=5, **TRICKY),
    )
] + [
    Case(h_q=24, topk=1, s_q=2),
    Case(h_q=1, topk=65, s_q=2),
    Case(h_q=100, topk=65, s_q=2),
    Case(h_q=64, indices="some_none", poison=True, s_q=4),
    Case(h_q=16, indices="some_none", poison=True, s_q=4),
    Case(h_q=64, values="ramp", indices="ascending", topk=260),
    Case(h_q=16, values="ramp", indices="ascending", topk=260),
    Case(h_q=64, batch=2, s_q=2, topk_length="random"),
    Case(h_q=16, batch=2, s_q=2, topk_length="random"),
    # more queries than there are SMs: CTAs take several
    Case(h_q=64, s_q=200, topk=10, s_kv=64),
    Case(h_q=16, s_q=300, topk=10, s_kv=64),
]


def on_gpu(x: SparseMlaFwdInputs) -> SparseMlaFwdInputs:
    tensors = {k: v.cuda() for k, v in vars(x).items() if isinstance(v, torch.Tensor)}
    return replace(x, **tensors)


@torch.no_grad()
def main() -> int:
    if not torch.cuda.is_available():
        sys.exit("sanitizer_cases: needs a GPU: torch.cuda.is_available() is False")
    major = torch.cuda.get_device_capability()[0]
    failures = 0
    for case in CASES:
        cpu = make_inputs(case)
        gpu = on_gpu(cpu)
        shape = cpu.q.shape[:-1]
        out = (
            torch.full((*shape, case.d_v), math.nan, dtype=torch.bfloat16).cuda(),
            torch.full(shape, math.nan).cuda(),
            torch.full(shape, math.nan).cuda(),
        )
        gpu.call(dsa_ext.sparse_mla_fwd, out=out)
        try:
            verify([r.cpu() for r in out], cpu, bf16_weights=True)
            verdict = "ok"
        except AssertionError as error:
            verdict = f"WRONG: {error}"
            failures += 1
        print(f"{path(major, case.h_q, case.d_qk, case.topk)}: {case.id}: {verdict}", flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
