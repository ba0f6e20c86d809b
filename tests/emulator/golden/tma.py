"""Programs of TMA: boxes of tensors, swizzled, and over the tensors' edges."""

from dataclasses import dataclass
from math import prod

import numpy as np

from .memory import BARRIER, DATA, random_bytes, wait_for
from .program import Program, TensorMap, kernel

THREADS = 128


@dataclass(frozen=True)
class Box:
    """What is copied; the innermost dimension comes first."""

    element_bytes: int
    swizzle: int
    sizes: tuple[int, ...]  # of the tensor
    box: tuple[int, ...]
    start: tuple[int, ...]  # in bytes, a multiple of 16 in the innermost dimension: others are illegal instructions

    @property
    def bytes(self) -> int:
        return prod(self.box) * self.element_bytes

    @property
    def strides(self) -> tuple[int, ...]:
        """Rows are padded to 16 bytes, and so is what lies above them, by 16 more."""
        strides = [(self.sizes[0] * self.element_bytes + 15) // 16 * 16]
        for size in self.sizes[1:-1]:
            strides.append(strides[-1] * size + 16)
        return tuple(strides)

    @property
    def tensor_bytes(self) -> int:
        return self.strides[-1] * self.sizes[-1]

    @property
    def instruction(self) -> str:
        return f"cp.async.bulk.tensor.{len(self.sizes)}d"

    @property
    def coordinates(self) -> str:
        return "{" + ", ".join(map(str, self.start)) + "}"

    def map(self, array: str) -> TensorMap:
        return TensorMap(array, self.element_bytes, self.sizes, self.strides, self.box, self.swizzle)


INSIDE = [
    *(Box(2, swizzle, (64, 24), (swizzle // 2 or 64, 16), (0, 3)) for swizzle in (0, 32, 64, 128)),
    *(Box(1, swizzle, (160, 40), (swizzle, 32), (32, 5)) for swizzle in (32, 64, 128)),
]
EDGES = [
    *(
        Box(2, 128, (72, 16), (64, 16), start)
        for start in ((40, 0), (-24, 0), (0, 9), (0, -5), (56, 14), (-8, -1), (80, 0))
    ),
    Box(2, 0, (24, 4), (64, 8), (0, 0)),
    Box(2, 128, (69, 16), (64, 16), (48, 3)),
    Box(1, 128, (144, 9), (128, 16), (16, -4)),
]
HIGHER = [
    Box(2, 128, (64, 7, 5), (64, 4, 2), (0, 5, 1)),
    Box(2, 64, (48, 3, 4, 3), (32, 2, 2, 4), (32, 2, -1, 1)),
    Box(1, 0, (64, 3, 2, 3, 2), (32, 2, 2, 2, 2), (16, -1, 1, 1, 0)),
]


def load(name: str, box: Box) -> Program:
    """The box is loaded; shared memory is stored as it lies."""
    moves = [
        f"ld.shared.b32 %v, [%a + {DATA + i}];\nst.global.b32 [%g1 + {i}], %v;"
        for i in range(0, box.bytes, 4 * THREADS)
    ]
    body = f"""
.reg .pred P, %first;
.reg .b32 %s, %a, %v;
.reg .b64 %x;
setp.eq.u32 %first, %thread, 0;
@%first mbarrier.init.shared.b64 [%window + {BARRIER}], 1;
fence.proxy.async.shared::cta;
bar.sync 0;
@!%first bra loaded;
mbarrier.arrive.expect_tx.shared.b64 _, [%window + {BARRIER}], {box.bytes};
add.u32 %s, %window, {DATA};
{box.instruction}.shared::cluster.global.mbarrier::complete_tx::bytes
  [%s], [%m0, {box.coordinates}], [%window + {BARRIER}];
loaded:
{wait_for(BARRIER, 0, "tma")}
mul.lo.u32 %a, %thread, 4;
mul.wide.u32 %x, %thread, 4;
add.u64 %g1, %g1, %x;
add.u32 %a, %a, %window;
"""
    return Program(
        name,
        kernel(body + "\n".join(moves), 2, maps=1, shared=1),
        {"in": random_bytes(box.tensor_bytes, len(name)), "out": np.zeros(box.bytes, np.uint8)},
        maps=(box.map("in"),),
        threads=THREADS,
        shared=DATA + box.bytes,
        rows=(str(box),),
    )


def store(name: str, box: Box) -> Program:
    """Shared memory is stored as the box, of which a part may lie outside."""
    moves = [f"ld.global.b32 %v, [%g0 + {i}];\nst.shared.b32 [%a + {i}], %v;" for i in range(0, box.bytes, 4 * THREADS)]
    body = f"""
.reg .pred %other;
.reg .b32 %a, %v;
.reg .b64 %x;
mul.lo.u32 %a, %thread, 4;
mul.wide.u32 %x, %thread, 4;
add.u64 %g0, %g0, %x;
add.u32 %a, %a, %window;
{chr(10).join(moves)}
fence.proxy.async.shared::cta;
bar.sync 0;
setp.ne.u32 %other, %thread, 0;
@%other ret;
{box.instruction}.global.shared::cta.bulk_group [%m0, {box.coordinates}], [%window];
cp.async.bulk.commit_group;
cp.async.bulk.wait_group 0;
"""
    return Program(
        name,
        kernel(body, 2, maps=1, shared=1),
        {"in": random_bytes(box.bytes, len(name)), "out": np.full(box.tensor_bytes, 0xEE, np.uint8)},
        maps=(box.map("out"),),
        threads=THREADS,
        shared=box.bytes,
        rows=(str(box),),
    )


def programs() -> list[Program]:
    loads = [load(f"tma_load_{n}", box) for n, box in enumerate(INSIDE + EDGES + HIGHER)]
    # (Stores that start before the tensor are illegal instructions.)
    stores = [
        store(f"tma_store_{n}", box)
        for n, box in enumerate(INSIDE + EDGES[:5] + EDGES[-1:] + HIGHER)
        if min(box.start) >= 0
    ]
    return loads + stores
