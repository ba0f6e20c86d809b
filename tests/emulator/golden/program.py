"""A small PTX program with its inputs: it runs on a GPU, which makes the golden files, and on the emulator."""

from dataclasses import dataclass, field

import numpy as np

HEADER = """.version 8.6
.target sm_90a
.address_size 64
"""


@dataclass(frozen=True)
class TensorMap:
    """What cuTensorMapEncodeTiled needs to know of one of the program's arrays; the innermost dimension comes first."""

    array: str
    element_bytes: int  # 1: bytes, 2: bf16
    sizes: tuple[int, ...]
    strides: tuple[int, ...]  # bytes, from the second dimension on
    box: tuple[int, ...]
    swizzle: int  # row bytes: 0 (none), 32, 64 or 128


@dataclass(frozen=True)
class Program:
    """The kernel `test` takes the tensor maps, then the arrays' addresses, in this order."""

    name: str
    ptx: str
    arrays: dict[str, np.ndarray]
    outputs: tuple[str, ...] = ("out",)
    maps: tuple[TensorMap, ...] = ()
    threads: int = 32
    grid: int = 1
    cluster: int = 1
    shared: int = 0
    rows: tuple[str, ...] = field(default=(), repr=False)  # what makes each row of `out`


def kernel(body: str, arrays: int, maps: int = 0, shared: int = 0, cluster: int = 1, tail: str = "") -> str:
    """A module whose kernel has its arguments' addresses in %m0.. (maps) and %g0.. (arrays), its thread in %thread, and
    its dynamic shared memory in %window."""
    parameters = [f".param .align 64 .b8 map{n}[128]" for n in range(maps)]
    parameters += [f".param .u64 array{n}" for n in range(arrays)]
    lines = [HEADER]
    if shared:
        lines.append(".extern .shared .align 1024 .b8 dynamic[];")
    lines += [f".visible .entry test({', '.join(parameters)})"]
    if cluster > 1:
        lines.append(f".explicitcluster\n.reqnctapercluster {cluster}, 1, 1")
    lines += [
        "{",
        f".reg .b64 %m<{maps + 1}>, %g<{arrays}>;",
        ".reg .b32 %thread, %window;",
        "mov.u32 %thread, %tid.x;",
    ]
    lines = [*lines, *(f"mov.b64 %m{n}, map{n};\ncvta.param.u64 %m{n}, %m{n};" for n in range(maps))]
    lines += [f"ld.param.u64 %g{n}, [array{n}];\ncvta.to.global.u64 %g{n}, %g{n};" for n in range(arrays)]
    if shared:
        lines.append("mov.u32 %window, dynamic;")
    return "\n".join([*lines, body.strip(), "ret;", "}", tail])
