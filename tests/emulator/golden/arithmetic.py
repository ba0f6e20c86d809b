"""Programs of instructions that are functions of each thread's operands: a row of results an instruction.

The operands are called A2, A4, A8 (the first one's low 2, 4 or 8 bytes), B2 ..., C2 ..., and P (C's lowest bit); the
result is D1 (a predicate), D2, D4 or D8.
"""

import re

import numpy as np

from .program import Program, kernel

THREADS = 128
INTEGERS = "s16 u16 s32 u32 s64 u64"
SHIFTS = {"shl": "b16 b32 b64", "shr": "b16 b32 b64 u16 u32 u64 s16 s32 s64"}
COMPARISONS = {
    "eq ne lt le gt ge": f"{INTEGERS} f32",
    "eq ne": "b16 b32 b64",
    "lo ls hi hs": "u16 u32 u64",
    "equ neu ltu leu gtu geu num nan": "f32",
}


def _typed(names: str, types: str, operands: int) -> list[str]:
    """`name.type D, A, B`, for each name and type."""
    return [
        f"{name}.{t} " + ", ".join(f"{o}{_bytes(t)}" for o in "DABC"[: operands + 1])
        for name in names.split()
        for t in types.split()
    ]


def _bytes(type_name: str) -> int:
    return int(re.search(r"\d+", type_name)[0]) // 8 * (2 if type_name.endswith("x2") else 1)


INTEGER = [
    *_typed("add sub mul.lo div rem min max", INTEGERS, 2),
    *_typed("neg abs", "s16 s32 s64", 1),
    *_typed("mul.hi", "s32 u32 s64 u64", 2),
    *_typed("mad.lo", INTEGERS, 3),
    *(f"mul.wide.{t}16 D4, A2, B2" for t in "su"),
    *(f"mul.wide.{t}32 D8, A4, B4" for t in "su"),
    *(f"mad.wide.{t}32 D8, A4, B4, C8" for t in "su"),
]
BITS = [
    *_typed("and or xor", "b16 b32 b64", 2),
    *_typed("not", "b16 b32 b64", 1),
    *(f"{name}.{t} D{_bytes(t)}, A{_bytes(t)}, B4" for name, types in SHIFTS.items() for t in types.split()),
    *(f"shf.{side}.{mode}.b32 D4, A4, C4, B4" for side in "lr" for mode in ("wrap", "clamp")),
    "bfe.u32 D4, A4, B4, 7",
    "bfe.u32 D4, A4, 9, B4",
    "bfi.b32 D4, A4, C4, B4, 5",
    "bfi.b32 D4, A4, C4, 3, B4",
    "bfi.b64 D8, A8, C8, B4, 21",
    "brev.b32 D4, A4",
    *(f"{name}.b{8 * n} D4, A{n}" for name in ("popc", "clz") for n in (4, 8)),
    "bfind.u32 D4, A4",
    "bfind.shiftamt.u32 D4, A4",
    "prmt.b32 D4, A4, C4, B4",
    "prmt.b32 D4, A4, C4, C4",
    *(f"lop3.b32 D4, A4, B4, C4, {table:#x}" for table in (0x96, 0xE8, 0x1D, 0xF8, 0x80, 0xCA)),
    *(f"{name}.pred D1, P, P" for name in ("and", "or", "xor")),
    "not.pred D1, P",
]
SELECT = [
    *(
        f"setp.{name}.{t} D1, A{_bytes(t)}, B{_bytes(t)}"
        for names, types in COMPARISONS.items()
        for name in names.split()
        for t in types.split()
    ),
    *(f"selp.b{8 * n} D{n}, A{n}, B{n}, P" for n in (2, 4, 8)),
]
FLOAT = [
    *_typed("add sub mul add.ftz sub.ftz mul.ftz add.rn mul.rn min max min.ftz max.ftz div.rn", "f32", 2),
    *_typed("neg abs neg.ftz abs.ftz rcp.rn sqrt.rn", "f32", 1),
    *_typed("fma.rn fma.rn.ftz", "f32", 3),
]
BF16 = [
    *_typed("add.rn sub.rn mul.rn min max", "bf16 bf16x2", 2),
    *_typed("fma.rn", "bf16 bf16x2", 3),
]
CONVERT = [
    *(f"cvt.rn.{t}.f32 D2, A4" for t in ("bf16", "f16")),
    *(f"cvt.rn.{t}.f32 D4, A4, B4" for t in ("bf16x2", "f16x2")),
    "cvt.rn.satfinite.e4m3x2.f32 D2, A4, B4",
    "cvt.rn.f16x2.e4m3x2 D4, C2",
    *(f"cvt.f32.{t} D4, C2" for t in ("bf16", "f16")),
    *(
        f"cvt.{rounding}.{t}.f32 D{_bytes(t)}, A4"
        for rounding in ("rni", "rzi", "rmi", "rpi", "rzi.ftz")
        for t in INTEGERS.split()
    ),
    *(f"cvt.rn.f32.{t} D4, C{_bytes(t)}" for t in INTEGERS.split()),
    *(f"cvt.rn.f32.{t}8 D4, C2" for t in "us"),
    *(f"cvt.{to}.{t} D{_bytes(to)}, C{_bytes(t)}" for to in INTEGERS.split() for t in INTEGERS.split() if to != t),
    *(f"cvt.{to}8.{t} D4, C{_bytes(t)}" for to in "us" for t in INTEGERS.split()),
    *(f"cvt.{t}.{of}8 D{_bytes(t)}, C2" for t in INTEGERS.split() for of in "us"),
    *(f"mov.b{8 * n} D{n}, C{n}" for n in (2, 4, 8)),
    "mov.b64 D8, {A4, B4}",
    "mov.b32 D4, {A2, B2}",
    "mov.b64 {_, D4}, A8",
    "mov.b32 {D2, _}, A4",
]
# What the hardware computes to about 22 bits; the exact forms are in FLOAT.
APPROXIMATE = _typed("ex2.approx.ftz lg2.approx.ftz ex2.approx lg2.approx", "f32", 1)
LOOSE = [
    *_typed("rcp.approx.ftz rcp.approx sqrt.approx.ftz rsqrt.approx.ftz rsqrt.approx tanh.approx", "f32", 1),
    *_typed("div.full div.approx", "f32", 2),
]


def programs() -> list[Program]:
    rng = np.random.RandomState(1)
    integers = [_integers(rng) for _ in "ABC"]
    shifts = [integers[0], _shift_counts(rng), integers[2]]
    floats = [_floats(rng, order) for order in (0, 1, 2)]
    halves = [rng.randint(0, 2**32, THREADS).astype(np.uint64) for _ in "ABC"]
    halves[1][:8] = 0x7F807F80, 0xFF80FF80, 0x7FC17FC1, 0, 0x80008000, 0x00010001, 0x80017F7F, 0x3F803F80
    near = _near_e4m3(rng)
    return [
        _program("integer", INTEGER, integers),
        _program("bits", BITS, shifts),
        _program(
            "select", SELECT, [integers[0], np.where(np.arange(THREADS) % 3, integers[1], integers[0]), halves[2]]
        ),
        _program("select_float", [t for t in SELECT if "f32" in t], floats),
        _program("float", FLOAT, floats),
        _program("bf16", BF16, halves),
        _program("convert", CONVERT, [floats[0], floats[1], integers[0]]),
        _program(
            "convert_e4m3", [t for t in CONVERT if "e4m3" in t], [near, near[::-1], np.resize(halves[0], len(near))]
        ),
        _program("approximate", APPROXIMATE, [_arguments(rng, 2048)]),
        _program("loose", LOOSE, [_arguments(rng, 512), _arguments(rng, 512)[::-1]]),
    ]


def _program(name: str, instructions: list[str], operands: list[np.ndarray]) -> Program:
    count = len(operands[0])
    operands = [np.ascontiguousarray(o, np.uint64) for o in [*operands, *[operands[0]] * (3 - len(operands))]]
    body = [
        ".reg .b16 A2, B2, C2, D2;\n.reg .b32 A4, B4, C4, D4, %t, %n;\n.reg .b64 A8, B8, C8, D8, %x;",
        ".reg .pred P, D1;",
        "mov.u32 %t, %ctaid.x;\nmov.u32 %n, %ntid.x;\nmad.lo.u32 %t, %t, %n, %thread;\nmul.wide.u32 %x, %t, 8;",
    ]
    body += [f"add.u64 %g{n}, %g{n}, %x;\nld.global.b64 {o}8, [%g{n}];" for n, o in enumerate("ABC")]
    body += [f"cvt.u32.u64 {o}4, {o}8;\ncvt.u16.u64 {o}2, {o}8;" for o in "ABC"]
    body += ["and.b32 D4, C4, 1;\nsetp.ne.u32 P, D4, 0;\nadd.u64 %g3, %g3, %x;"]
    wide = {1: "selp.u64 D8, 1, 0, D1;", 2: "cvt.u64.u16 D8, D2;", 4: "cvt.u64.u32 D8, D4;", 8: ""}
    for row, text in enumerate(instructions):
        result = int(re.search(r"D(\d)", text)[1])
        body.append(f"{text};\n{wide[result]}\nst.global.b64 [%g3 + {row * count * 8}], D8;")
    arrays = dict(zip("abc", operands, strict=True)) | {"out": np.zeros((len(instructions), count), np.uint64)}
    threads = min(count, THREADS)
    ptx = kernel("\n".join(body), len(arrays))
    return Program(name, ptx, arrays, threads=threads, grid=count // threads, rows=tuple(instructions))


def _integers(rng: np.random.RandomState) -> np.ndarray:
    special = [0, 1, 2, 3, 2**64 - 1, 2**31, 2**31 - 1, 2**63, 2**63 - 1, 2**32 - 1, 2**32, 2**15, 2**16 - 1, 2**15 - 1]
    values = [int(rng.randint(2**32)) << 32 | int(rng.randint(2**32)) for _ in range(THREADS)]
    values = [v >> int(rng.randint(64)) for v in values]
    values[:32] = [special[rng.randint(len(special))] for _ in range(32)]
    values[32:34] = [2**63, 2**31]
    return np.array(values, np.uint64)


def _shift_counts(rng: np.random.RandomState) -> np.ndarray:
    counts = np.arange(THREADS) % 72
    counts[100:] = rng.randint(0, 2**31, THREADS - 100)
    return counts.astype(np.uint64)


def _bits(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).view(np.uint32).astype(np.uint64)


def _floats(rng: np.random.RandomState, order: int) -> np.ndarray:
    """Numbers of one size, numbers of any, whole ones and halves, and pairs of the special ones."""
    special = [0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 1, 0x807FFFFF, 0x00800000, 0x7F7FFFFF, 0x3F800000]
    special = np.array(special, np.uint64)
    values = _bits(rng.randint(-(2**24), 2**24, THREADS) / 2.0**23)
    values[28:64] = rng.randint(0, 2**32, 36)
    values[64:96] = _bits(rng.randint(-600, 600, 32) / 2.0)
    pair = np.arange(28) + 28 * (order == 2)
    values[:28] = special[(pair if order == 0 else pair * 3 + pair // 10) % 10]
    return values


def _near_e4m3(rng: np.random.RandomState) -> np.ndarray:
    """Around every number of the format and halfway between neighbours; beyond its largest."""
    magnitudes = [m / 8 * 2.0**-6 for m in range(8)]
    magnitudes += [(1 + m / 8) * 2.0**e for e in range(-6, 9) for m in range(8)]
    points = np.array([*magnitudes, *(np.array(magnitudes[1:]) + magnitudes[:-1]) / 2, 464, 2**-10, 1e9], np.float32)
    around = np.concatenate([points, np.nextafter(points, np.float32(0)), np.nextafter(points, np.float32(1e30))])
    signs = rng.randint(0, 2, len(around)).astype(np.uint64) << np.uint64(31)
    bits = _bits(around) ^ signs
    return bits[: len(bits) // THREADS * THREADS]


def _arguments(rng: np.random.RandomState, count: int) -> np.ndarray:
    """Of the functions: of all sizes, more of those that softmax meets."""
    values = _bits(rng.randint(-(2**30), 2**30, count) / 2.0**25)
    values[::4] = _bits(rng.randint(0, 2**24, len(values[::4])) / 2.0**22)
    values[2::16] = _bits(rng.randint(-(2**24), 2**24, len(values[2::16])) / 2.0**30)
    values[1::8] = rng.randint(0, 2**32, len(values[1::8]))
    special = [0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 1, 0x80000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF]
    special += [0x3F800000, 0xBF800000, 0xC2FC0000, 0xC3150000, 0xC3160000, 0x43000000, 0x42FE0000, 0x3F7FFFFF]
    values[: len(special)] = special
    return values


def function(instruction: str, x: np.ndarray) -> Program:
    """One instruction on many float32 numbers, a multiple of 256."""
    body = f"""
.reg .b32 A4, D4, %t, %n;
.reg .b64 %x;
mov.u32 %t, %ctaid.x;
mov.u32 %n, %ntid.x;
mad.lo.u32 %t, %t, %n, %thread;
mul.wide.u32 %x, %t, 4;
add.u64 %g0, %g0, %x;
add.u64 %g1, %g1, %x;
ld.global.b32 A4, [%g0];
{instruction} D4, A4;
st.global.b32 [%g1], D4;
"""
    arrays = {"in": x, "out": np.zeros_like(x)}
    return Program(instruction, kernel(body, 2), arrays, threads=256, grid=len(x) // 256)
