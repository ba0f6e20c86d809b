"""Finds how the GPU computes ex2 and lg2: python -m tests.emulator.golden.tables functions.xz prints the rows of
src/approximate.cpp.

A function is 64 parabolas in the operand's lowest 17 bits t: (c0 << shift) + bias + c1 t + c2 s(t), all whole numbers,
where s is the square without the products of bits below 2^19 (src/approximate.cpp). The result is cut, not rounded, so
that every known result bounds the sum from both sides. Few numbers satisfy all bounds; each search finds one triple.
"""

import lzma
import sys
from pathlib import Path

import numpy as np

STEP_BITS = 17
EX2, LG2 = (13, 6114), (12, 837)  # shift and bias
LG2_SCALE = 2.0**38


def square(t: np.ndarray) -> np.ndarray:
    total = np.zeros_like(t)
    for i in range(STEP_BITS):
        for j in range(i, STEP_BITS):
            column = i + j + (i != j)
            if column >= 19:
                total += (t >> i & t >> j & 1) << column - 19
    return total


def parabola(t: np.ndarray, low: np.ndarray, high: np.ndarray, form: tuple[int, int]) -> tuple[int, int, int]:
    """c0, c1, c2 such that low <= sum < high."""
    s = square(t)
    _, first, second = np.linalg.lstsq(np.stack([t**0, t, s], 1).astype(float), (low + high) / 2, rcond=None)[0]
    found = []
    for c2 in range(round(second) - 3, round(second) + 4):
        for c1 in range(round(first) - 6, round(first) + 7):
            rest = c1 * t + c2 * s + form[1]
            least, most = -(-(low - rest).max() >> form[0]), (high - rest).min() - 1 >> form[0]
            found += [(int(c0), c1, c2) for c0 in range(least, most + 1)]
    (only,) = found
    return only


def ex2_rows(differences: np.ndarray) -> list[tuple[int, int, int]]:
    """Of the results for -k 2^-23, whose fraction is the complement of k; but for -0, which is treated apart."""
    k = np.arange(2**23)
    nearest = np.exp2(-k * 2.0**-23).astype(np.float32)
    results = (nearest.view(np.int32) + differences).astype(np.int32).view(np.float32)
    whole = (results * 2.0**24).astype(np.int64)[:0:-1]
    t = np.arange(2**23 - 1)
    return [
        parabola(t[part] & 2**STEP_BITS - 1, whole[part] << 15, whole[part] + 1 << 15, EX2)
        for part in (slice(n << STEP_BITS, n + 1 << STEP_BITS) for n in range(64))
    ]


def lg2_rows(differences: np.ndarray) -> list[tuple[int, int, int]]:
    """Of the results for 1 + k 2^-23, k as in write_functions; but for the smallest, of which the file lacks some."""
    j = np.arange(2**19)
    k = 16 * j + 7 * j % 16
    nearest = np.log2(1 + k * 2.0**-23).astype(np.float32)
    results = (nearest.view(np.int32) + differences.astype(np.int32)).view(np.float32).astype(float)
    usable = results > 2.0**-13
    last = 2.0 ** (np.floor(np.log2(np.where(usable, results, 1))) - 23)
    low, high = (np.round(x * LG2_SCALE).astype(np.int64) for x in (results, results + last))
    parts = [usable & (k >> STEP_BITS == n) for n in range(64)]
    return [parabola(k[part] & 2**STEP_BITS - 1, low[part], high[part], LG2) for part in parts]


if __name__ == "__main__":
    data = lzma.decompress(Path(sys.argv[1]).read_bytes())
    ex2 = ex2_rows(np.frombuffer(data, np.int8, 2**23))
    lg2 = lg2_rows(np.frombuffer(data, np.int16, 2**19, 2**23 + 2**20))
    for name, rows in (("ex2", ex2), ("lg2", lg2)):
        print(f"{name}:", *(f"{{{c0}, {c1}, {c2}}}," for c0, c1, c2 in rows))
