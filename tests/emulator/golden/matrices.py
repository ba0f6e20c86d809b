"""Programs of matrix instructions: wgmma's layouts and arithmetic, ldmatrix and stmatrix."""

from dataclasses import dataclass

import numpy as np

from .program import Program, kernel

WARPGROUP = 128
BF16, E4M3 = "bf16", "e4m3"
DEPTH = {BF16: 16, E4M3: 32}  # of one product
PROBLEMS_N = 8


@dataclass(frozen=True)
class Operand:
    """Where a matrix lies in shared memory; bytes."""

    start: int
    leading: int = 16
    stride: int = 1024
    swizzle: int = 128
    across: bool = False

    @property
    def descriptor(self) -> int:
        """But for the start."""
        mode = {0: 0, 128: 1, 64: 2, 32: 3}[self.swizzle]
        return self.leading >> 4 << 16 | self.stride >> 4 << 32 | mode << 62


def product(n: int, element: str, a: str, b: str, registers: list[str], flags: str) -> str:
    """One wgmma, fenced, committed and waited for; flags: accumulate?, sign, sign, transpositions."""
    name = f"wgmma.mma_async.sync.aligned.m64n{n}k{DEPTH[element]}.f32.{element}.{element}"
    return f"""wgmma.fence.sync.aligned;
{name}
  {{{", ".join(registers)}}}, {a}, {b}, {flags};
wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 0;"""


def copy_in(count: int, array: str = "%g0") -> str:
    """`count` bytes of the array to dynamic shared memory, then a barrier and the fence for the async proxy."""
    step = WARPGROUP * 4
    moves = [f"ld.global.b32 %v, [%from + {i}];\nst.shared.b32 [%to + {i}], %v;" for i in range(0, count, step)]
    return "\n".join(
        [
            ".reg .b32 %v, %to;\n.reg .b64 %from, %offset;\nmul.lo.u32 %to, %thread, 4;",
            f"mul.wide.u32 %offset, %thread, 4;\nadd.u64 %from, {array}, %offset;\nadd.u32 %to, %to, %window;",
            *moves,
            "fence.proxy.async.shared::cta;\nbar.sync 0;",
        ]
    )


def descriptor(register: str, operand: Operand) -> str:
    return f"""add.u32 %v, %window, {operand.start};
and.b32 %v, %v, 0x3ffff;
shr.u32 %v, %v, 4;
cvt.u64.u32 {register}, %v;
or.b64 {register}, {register}, {operand.descriptor:#x};"""


# n, element, left (None: in registers), right. The image is 48 KiB of small whole numbers, whatever the layout.
LAYOUTS: list[tuple[int, str, Operand | None, Operand]] = [
    (64, BF16, Operand(0), Operand(16384)),
    (64, BF16, Operand(32), Operand(16384 + 32)),
    (40, BF16, Operand(8192 + 96), Operand(16384 + 64)),
    (64, BF16, Operand(0, stride=512, swizzle=64), Operand(16384 + 32, stride=512, swizzle=64)),
    (64, BF16, Operand(0, stride=256, swizzle=32), Operand(16384, stride=256, swizzle=32)),
    (64, BF16, Operand(0, 128, 256, 0), Operand(16384, 1024, 128, 0)),
    (64, BF16, Operand(0, 2048, 1024, 128, True), Operand(16384, 2048, 1024, 128, True)),
    (128, BF16, Operand(2048), Operand(16384, 4096, 1024, 128, True)),
    (64, BF16, Operand(0, 1024, 512, 64, True), Operand(16384, 1024, 512, 64, True)),
    (64, BF16, Operand(0, 512, 256, 32, True), Operand(16384, 1024, 256, 32, True)),
    (64, BF16, Operand(0, 1024, 128, 0, True), Operand(16384, 1024, 128, 0, True)),
    (64, BF16, None, Operand(16384)),
    (256, BF16, None, Operand(16384, 8192, 1024, 128, True)),
    (64, E4M3, Operand(0), Operand(16384)),
    (128, E4M3, Operand(64), Operand(16384 + 64)),
    (64, E4M3, Operand(0, stride=512, swizzle=64), Operand(16384 + 32, stride=512, swizzle=64)),
    (32, E4M3, Operand(0, stride=256, swizzle=32), Operand(16384, stride=256, swizzle=32)),
    (64, E4M3, Operand(0, 128, 256, 0), Operand(16384, 1024, 128, 0)),
]
IMAGE = 49152


def layouts() -> list[Program]:
    rng = np.random.RandomState(60)
    whole = rng.randint(-3, 4, IMAGE // 2).astype(np.float32)
    images = {BF16: to_bf16(whole).view(np.uint8), E4M3: rng.choice([0, 0x38, 0xB8, 0x40, 0xC0, 0x44], IMAGE)}
    fragments = to_bf16(rng.randint(-3, 4, WARPGROUP * 8).astype(np.float32)).view(np.uint32)
    programs = []
    for number, (n, element, left, right) in enumerate(LAYOUTS):
        sums = [f"%d{i}" for i in range(n // 2)]
        body = [".reg .pred %no;\n.reg .b64 %a, %b, %x;\n.reg .b32 %f<4>;", f".reg .b32 %d<{n // 2}>;"]
        body += [copy_in(IMAGE), descriptor("%b", right), "mul.wide.u32 %x, %thread, 4;"]
        flags = "%no, 1, 1"
        if left is None:
            body += ["add.u64 %g1, %g1, %x;"]
            body += [f"ld.global.b32 %f{i}, [%g1 + {512 * i}];" for i in range(4)]
            a, flags = "{%f0, %f1, %f2, %f3}", f"{flags}, {right.across:d}"
        else:
            body += [descriptor("%a", left)]
            a = "%a"
            if element == BF16:
                flags = f"{flags}, {left.across:d}, {right.across:d}"
        body += ["setp.ne.u32 %no, %thread, %thread;", product(n, element, a, "%b", sums, flags)]
        body += ["add.u64 %g2, %g2, %x;", *(f"st.global.b32 [%g2 + {512 * i}], {d};" for i, d in enumerate(sums))]
        arrays = {
            "image": np.ascontiguousarray(images[element], np.uint8),
            "fragments": fragments,
            "out": np.zeros((n // 2, WARPGROUP), np.float32),
        }
        where = f"m64n{n} {element}: {left or 'registers'}, {right}"
        programs.append(
            Program(
                f"wgmma_layout_{number}",
                kernel("\n".join(body), 3, shared=1),
                arrays,
                threads=WARPGROUP,
                shared=IMAGE,
                rows=(where,),
            )
        )
    return programs


def to_bf16(x: np.ndarray) -> np.ndarray:
    """The nearest of finite numbers, as bits."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def sum_fragments(matrices: np.ndarray) -> np.ndarray:
    """[problems, 64, 8] sums as the four registers of each thread: [problems, 4, 128]."""
    return matrices[:, _ROWS, _COLUMNS]


def sum_matrices(fragments: np.ndarray) -> np.ndarray:
    """The inverse."""
    matrices = np.empty((len(fragments), 64, PROBLEMS_N), fragments.dtype)
    matrices[:, _ROWS, _COLUMNS] = fragments
    return matrices


_THREAD, _REGISTER = np.arange(WARPGROUP)[None, :], np.arange(4)[:, None]
_ROWS = _THREAD // 32 * 16 + _THREAD % 32 // 4 + 8 * (_REGISTER // 2)
_COLUMNS = _THREAD % 4 * 2 + _REGISTER % 2


def arithmetic(element: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, name: str = "wgmma") -> Program:
    """A CTA a problem: the bits of a [problems, 64, depth] and b [problems, 8, depth]; c [problems, 64, 8] float32."""
    count, depth = len(a), DEPTH[element]
    size = a.itemsize

    def unswizzled(x: np.ndarray) -> np.ndarray:
        cores = x.reshape(count, x.shape[1] // 8, 8, 2, depth // 2).transpose(0, 1, 3, 2, 4)
        return np.ascontiguousarray(cores).view(np.uint8).reshape(count, -1)

    image = np.concatenate([unswizzled(a), unswizzled(b)], 1)
    left, right = Operand(0, 128, 256, 0), Operand(64 * depth * size, 128, 256, 0)
    padded = np.zeros((count, (image.shape[1] + 511) // 512 * 512), np.uint8)
    padded[:, : image.shape[1]] = image
    body = [".reg .pred %yes;\n.reg .b64 %a, %b, %x;\n.reg .b32 %d<4>, %cta;\nmov.u32 %cta, %ctaid.x;"]
    body += [f"mul.wide.u32 %x, %cta, {padded.shape[1]};\nadd.u64 %g0, %g0, %x;", copy_in(padded.shape[1])]
    body += [descriptor("%a", left), descriptor("%b", right)]
    body += [f"mad.lo.u32 %v, %cta, {4 * WARPGROUP}, %thread;\nmul.wide.u32 %x, %v, 4;"]
    body += [f"add.u64 %g{i}, %g{i}, %x;" for i in (1, 2)]
    body += [f"ld.global.b32 %d{i}, [%g1 + {512 * i}];" for i in range(4)]
    body += ["setp.eq.u32 %yes, %thread, %thread;"]
    flags = "%yes, 1, 1" + ", 0, 0" * (element == BF16)
    body += [product(PROBLEMS_N, element, "%a", "%b", [f"%d{i}" for i in range(4)], flags)]
    body += [f"st.global.b32 [%g2 + {512 * i}], %d{i};" for i in range(4)]
    arrays = {"image": padded, "c": sum_fragments(c), "out": np.zeros((count, 4, WARPGROUP), np.float32)}
    text = kernel("\n".join(body), 3, shared=1)
    return Program(f"{name}_{element}", text, arrays, threads=WARPGROUP, grid=count, shared=padded.shape[1])


def problems(element: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Operands' bits and float32 addends that show how sums are aligned, cut and rounded: one problem of each kind."""
    rng = np.random.RandomState(seed)
    depth, (fraction, low, high) = DEPTH[element], {BF16: (7, -60, 60), E4M3: (3, -6, 8)}[element]

    def numbers(shape: tuple[int, ...], least: int, most: int) -> np.ndarray:
        mantissa = 1 + rng.randint(0, 2**fraction, shape) / 2.0**fraction
        return mantissa * 2.0 ** rng.randint(least, most + 1, shape) * rng.choice([-1, 1], shape)

    def addends(least: int, most: int) -> np.ndarray:
        mantissa = 1 + rng.randint(0, 2**23, (64, 8)) / 2.0**23
        return mantissa * 2.0 ** rng.randint(least, most + 1, (64, 8)) * rng.choice([-1, 1], (64, 8))

    kinds = []
    for exponents, sums in [((-2, 1), (-1, 3)), ((-6, 6), (-12, 12)), ((low // 4, high // 4), (low, high))]:
        kinds.append((numbers((64, depth), *exponents), numbers((8, depth), *exponents), addends(*sums)))
    kinds.append((numbers((64, depth), -3, 3), numbers((8, depth), -3, 3), addends(12, 24)))  # the addend is largest
    kinds.append((numbers((64, depth), 0, 6), numbers((8, depth), 0, 6), addends(-30, -4)))  # it is smallest
    a, b = numbers((64, depth), -1, 1), numbers((8, depth), -1, 1)
    b[:, depth // 2 :] = b[:, : depth // 2]
    a[:, depth // 2 :] = -a[:, : depth // 2]
    a[::2, 3] = numbers((32,), -6, -4)  # all but one term cancel
    kinds.append((a, b, addends(-20, -8)))
    one = np.zeros((64, depth))
    one[np.arange(64), np.arange(64) % depth] = numbers((64,), -6, 6)
    kinds.append((one, numbers((8, depth), -6, 6), addends(-28, 28)))  # a single product
    kinds.append((one * 0, numbers((8, depth), -6, 6), addends(-40, 40)))  # none
    signs = rng.choice([-1.0, 1.0], (64, depth))
    kinds.append((signs * 1.5, np.ones((8, depth)) * 1.75, addends(-1, 22)))  # equal exponents
    kinds.append((np.abs(signs) * (2 - 2.0**-fraction), np.full((8, depth), 2 - 2.0**-fraction), addends(0, 8)))
    operands = [np.stack([k[i] for k in kinds]) for i in range(3)]
    to_bits = to_bf16 if element == BF16 else _e4m3_bits
    bits = [to_bits(operands[0]), to_bits(operands[1]), operands[2].astype(np.float32)]
    extreme = _extreme_bf16(rng) if element == BF16 else _extreme_e4m3(rng)
    return tuple(np.concatenate([x, y]) for x, y in zip(bits, extreme, strict=True))


def _e4m3_bits(x: np.ndarray) -> np.ndarray:
    """Of numbers that the format has."""
    mantissa, exponent = np.frexp(np.abs(x))
    bits = ((exponent + 6).astype(int) << 3) + ((2 * mantissa - 1) * 8).astype(int)
    return np.where(x == 0, 0, bits | (x < 0) * 0x80).astype(np.uint8)


def _random_addends(rng: np.random.RandomState, count: int) -> np.ndarray:
    return rng.randint(0, 2**32, (count, 64, 8)).astype(np.uint32).view(np.float32)


def _extreme_bf16(rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Near and beyond the largest number; subnormal ones; infinities and NaN here and there; any bits at all."""
    a, b = np.zeros((5, 64, 16), np.uint16), np.zeros((5, 8, 16), np.uint16)
    sign = rng.randint(0, 2, (64, 16)) << 15
    a[0] = (rng.randint(0x5F00, 0x5FC0, (64, 16))) | (sign & 0x8000 * (np.arange(64)[:, None] % 3 == 0))
    b[0] = rng.randint(0x5F00, 0x5FA0, (8, 16))
    a[1], b[1] = rng.randint(0, 0x100, (64, 16)) | sign, rng.randint(0x3E00, 0x4100, (8, 16))
    a[2], b[2] = rng.randint(0x1E00, 0x2300, (64, 16)) | sign, rng.randint(0x1E00, 0x2300, (8, 16))
    a[3], b[3] = rng.randint(0x3F00, 0x4000, (64, 16)) | sign, rng.randint(0x3F00, 0x4000, (8, 16))
    a[3, ::4, 2], a[3, 1::4, 7], a[3, 2::8, 1] = 0x7F80, 0xFF80, 0x7FC1
    b[3, 1, 2], b[3, 2, 7], b[3, 3, 5] = 0, 0xFF80, 0x7F81
    a[4], b[4] = rng.randint(0, 2**16, (64, 16)), rng.randint(0, 2**16, (8, 16))
    a[4, :, 8:] = 0
    c = _random_addends(rng, 5)
    c[0] = np.abs(c[0].view(np.int32) % 2**23 + 0x7E000000).astype(np.uint32).view(np.float32)
    c[1] = (rng.randint(0, 2**24, (64, 8)).astype(np.uint32) | 1).view(np.float32)
    c[2] = (rng.randint(0, 2**23, (64, 8)).astype(np.uint32)).view(np.float32)
    c[3] = rng.randint(-8, 9, (64, 8))
    return a, b, c


def _extreme_e4m3(rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Subnormal numbers, the largest, NaN here and there, any bits at all; with addends of any size."""
    a, b = np.zeros((4, 64, 32), np.uint8), np.zeros((4, 8, 32), np.uint8)
    sign = rng.randint(0, 2, (64, 32)) << 7
    a[0], b[0] = rng.randint(0, 16, (64, 32)) | sign, rng.randint(0, 16, (8, 32))
    a[1], b[1] = rng.randint(0x78, 0x7F, (64, 32)) | sign, rng.randint(0x78, 0x7F, (8, 32))
    a[2], b[2] = rng.randint(0, 0x7F, (64, 32)) | sign, rng.randint(0, 0x7F, (8, 32))
    a[2, ::5, 3], b[2, 6, 4] = 0x7F, 0xFF
    a[3], b[3] = rng.randint(0, 0x7F, (64, 32)) | sign, rng.randint(0, 0x7F, (8, 32))
    c = _random_addends(rng, 4)
    c[0] = rng.randint(-(2**20), 2**20, (64, 8)) * 2.0**-34
    c[1, ::2] = rng.randint(-(2**24), 2**24, (32, 8)) * 2.0**-2
    return a, b, c


def moves() -> Program:
    """ldmatrix and stmatrix, of 1, 2 and 4 matrices, as they are and transposed. Rows lie 16 bytes apart, in an order
    that differs from the lanes'."""
    forms = [(count, trans) for count in (1, 2, 4) for trans in ("", ".trans")]
    body = [".reg .b32 %v, %a, %b, E<4>;\n.reg .b64 %x, %y;\nmul.wide.u32 %x, %thread, 16;\nadd.u64 %g1, %g1, %x;"]
    body += ["mul.lo.u32 %a, %thread, 16;\nadd.u32 %a, %a, %window;\nadd.u64 %y, %g0, %x;"]
    body += ["ld.global.v4.b32 {E0, E1, E2, E3}, [%y];\nst.shared.v4.b32 [%a], {E0, E1, E2, E3};\nbar.warp.sync -1;"]
    body += ["mad.lo.u32 %b, %thread, 5, 3;\nand.b32 %b, %b, 31;\nmul.lo.u32 %b, %b, 16;\nadd.u32 %b, %b, %window;"]
    row = 0
    for count, trans in forms:
        names = ", ".join(f"E{i}" for i in range(count))
        body += ["mov.b32 E0, 0;\nmov.b32 E1, 0;\nmov.b32 E2, 0;\nmov.b32 E3, 0;"]
        body += [f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{names}}}, [%b];"]
        body += [f"st.global.v4.b32 [%g1 + {512 * row}], {{E0, E1, E2, E3}};"]
        row += 1
    for count, trans in forms:
        names = ", ".join(f"E{i}" for i in range(count))
        body += ["st.shared.v4.b32 [%a + 512], {-1, -1, -1, -1};\nld.shared.v4.b32 {E0, E1, E2, E3}, [%a];"]
        body += ["bar.warp.sync -1;", f"stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%b + 512], {{{names}}};"]
        body += ["bar.warp.sync -1;\nld.shared.v4.b32 {E0, E1, E2, E3}, [%a + 512];"]
        body += [f"st.global.v4.b32 [%g1 + {512 * row}], {{E0, E1, E2, E3}};"]
        row += 1
    rows = [f"{name} x{count}{trans}" for name in ("ldmatrix", "stmatrix") for count, trans in forms]
    words = np.arange(256, dtype=np.uint16)
    arrays = {"in": words, "out": np.zeros((row, 128), np.uint32)}
    return Program("matrix_moves", kernel("\n".join(body), 2, shared=1), arrays, shared=1024, rows=tuple(rows))


def programs() -> list[Program]:
    sums = [arithmetic(e, *map(np.concatenate, zip(*(problems(e, s) for s in (70, 71)), strict=True))) for e in DEPTH]
    return [moves(), *layouts(), *sums]
