"""Programs of loads, stores, atomic operations, cp.async and bulk copies."""

import re

import numpy as np

from .program import Program, kernel

BARRIER = 0  # where shared memory holds the mbarrier
DATA = 1024  # and the data


def random_bytes(count: int, seed: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, count).astype(np.uint8)


def load_store() -> Program:
    """Each thread moves 32 bytes through every width, and through shared, local and generic addresses."""
    loads = ["u8", "s8", "u16", "s16", "b16", "b32", "u32", "s32", "b64", "f32"]
    vectors = ["v2.b16", "v4.b16", "v2.b32", "v4.b32", "v2.b64", "v4.u8", "v2.s16"]
    body = [".reg .b64 %x, %y, %from, %to, D<4>;\n.reg .b32 %s, E<4>;\n.reg .b16 H<4>;"]
    body += ["mul.wide.u32 %x, %thread, 32;\nadd.u64 %from, %g0, %x;\nadd.u64 %to, %g1, %x;"]
    body += ["mul.lo.u32 %s, %thread, 32;\nadd.u32 %s, %s, %window;"]
    count = 0

    def out(stores: list[str]) -> None:
        nonlocal count
        body.extend(re.sub(r"TO(\d*)", lambda m: f"%to + {count * 1024 + int(m[1] or 0)}", text) for text in stores)
        count += 1

    for t in loads:
        out([f"ld.global.{t} D0, [%from + 8];", "st.global.b64 [TO], D0;"])
    for t in vectors:
        parts = int(t[1])
        letter, size = ("D", 8) if "64" in t else ("E", 4) if "32" in t else ("H", 2)
        names = ", ".join(f"{letter}{n}" for n in range(parts))
        stores = [f"st.global.b{8 * size} [TO{size * n}], {letter}{n};" for n in range(parts)]
        out([f"ld.global.{t} {{{names}}}, [%from + 16];", *stores])
        out([f"ld.global.{t} {{{names}}}, [%from];", f"st.global.{t} [TO16], {{{names}}};"])
    whole = "{D0, D1}, [%from]", "[TO], {D0, D1}"
    through = {
        "ld.global.nc": ["st.shared.v2.b64 [%s], {D0, D1};", "ld.shared.v2.b64 {D0, D1}, [%s];"],
        "ld.volatile.global": ["st.local.v2.b64 [scratch], {D0, D1};", "ld.local.v2.b64 {D0, D1}, [scratch];"],
        "ld.relaxed.gpu.global": [
            "cvt.u64.u32 %y, %s;\ncvta.shared.u64 %y, %y;\nst.v2.b64 [%y], {D1, D0};\nld.v2.b64 {D0, D1}, [%y];",
            "ld.shared.u8 D2, [%s + 3];\nst.shared.u8 [%s + 12], D2;\nld.shared.v2.b64 {D0, D1}, [%s];",
        ],
    }
    body.insert(1, ".local .align 16 .b8 scratch[32];")
    for load, between in through.items():
        out([f"{load}.v2.b64 {whole[0]};", *between, f"st.global.v2.b64 {whole[1]};"])
    ptx = kernel("\n".join(body), 2, shared=1)
    arrays = {"in": random_bytes(32 * 32, 2), "out": np.zeros((count, 32 * 32), np.uint8)}
    return Program("load_store", ptx, arrays, shared=32 * 32)


ATOMICS = [
    *(f"add.{t}" for t in ("u32", "s32", "u64", "f32")),
    *(f"{name}.{t}" for name in ("min", "max") for t in ("u32", "s32", "u64", "s64")),
    *(f"{name}.b{bits}" for name in ("and", "or", "xor", "exch") for bits in (32, 64)),
    *(f"{name}.u32" for name in ("inc", "dec")),
    *(f"cas.b{bits}" for bits in (32, 64)),
]


def atomics() -> Program:
    """Each thread on a word of its own, in global and in shared memory: the old values, then what is there. All threads
    on one word, with operations whose order does not show."""
    from .arithmetic import _floats, _integers

    rng = np.random.RandomState(3)
    integers = np.stack([_integers(rng)[:64] for _ in "ab"])
    floats = np.stack([_floats(rng, order)[:64] for order in (0, 1)])
    integers[1, ::3] = integers[0, ::3]  # so that some are exchanged
    body = [".reg .b64 %x, A8, B8, D8, C8;\n.reg .b32 A4, B4, D4, C4, %s;"]
    body += ["mul.wide.u32 %x, %thread, 8;"]
    body += [f"add.u64 %g{n}, %g{n}, %x;" for n in range(3)]
    body += ["mul.lo.u32 %s, %thread, 8;\nadd.u32 %s, %s, %window;\nmov.b32 C4, 77;\nmov.b64 C8, 78;"]
    rows = []
    for text in ATOMICS:
        size = int(re.search(r"\d+$", text)[0]) // 8
        float_row = text.endswith("f32") * 64 * 8
        for space, place in (("global", "[%g2 + OUT]"), ("shared", "[%s]")):
            old, now = len(rows) * 64 * 8, (len(rows) + 1) * 64 * 8
            operands = f"B{size}, C{size}" if text.startswith("cas") else f"B{size}"
            body += [f"ld.global.b64 A8, [%g0 + {float_row}];\nld.global.b64 B8, [%g1 + {float_row}];"]
            body += [f"cvt.u32.u64 B4, B8;\nst.{space}.b64 {place}, A8;".replace("OUT", str(now))]
            if text.startswith("cas"):
                body += [f"mov.b64 D8, B8;\nmov.b32 D4, B4;\natom.{space}.{text} D{size}, {place}, {operands};"]
            else:
                body += [f"atom.{space}.{text} D{size}, {place}, {operands};"]
            body[-1] = body[-1].replace("OUT", str(now))
            if size == 4:
                body.append("cvt.u64.u32 D8, D4;")
            body.append(f"st.global.b64 [%g2 + {old}], D8;")
            if space == "shared":
                body.append(f"ld.shared.b64 A8, [%s];\nst.global.b64 [%g2 + {now}], A8;")
            rows += [f"{space} {text}: old", f"{space} {text}: new"]
    shared_by_all = ["add.u32", "min.s32", "max.u32", "xor.b32", "or.b32"]
    for n, text in enumerate(shared_by_all):
        body += [f"ld.global.b32 B4, [%g1];\nred.shared.{text} [%window + {512 + 8 * n}], B4;"]
        body += [f"red.relaxed.gpu.global.{text} [%g3 + {8 * n}], B4;"]
    body.insert(-2 * len(shared_by_all), _initialised(512, len(shared_by_all)))
    body += ["bar.sync 0;\n.reg .pred P;\nsetp.ne.u32 P, %thread, 0;\n@P ret;"]
    for n in range(len(shared_by_all)):
        body += [f"ld.shared.b64 D8, [%window + {512 + 8 * n}];\nst.global.b64 [%g3 + {8 * (n + 8)}], D8;"]
    ptx = kernel("\n".join(body), 4, shared=1)
    arrays = {
        "a": np.concatenate([integers[0], floats[0]]),
        "b": np.concatenate([integers[1], floats[1]]),
        "out": np.zeros((len(rows), 64), np.uint64),
        "common": np.zeros(16, np.uint64),
    }
    return Program("atomics", ptx, arrays, ("out", "common"), threads=64, shared=1024, rows=tuple(rows))


def _initialised(offset: int, words: int) -> str:
    stores = "\n".join(f"st.shared.b64 [%window + {offset + 8 * n}], 0;" for n in range(words))
    return f"{stores}\nbar.sync 0;"


def cp_async() -> Program:
    """Copies of 4, 8 and 16 bytes, with fewer bytes to read, waited for in each way."""
    copies = [("ca", 4, None), ("ca", 8, None), ("ca", 16, None), ("cg", 16, None)]
    copies += [("cg", 16, n) for n in (0, 4, 7, 16)] + [("ca", 4, 2), ("ca", 8, 0)]
    body = [".reg .b64 %x, %from, %to, D<2>;\n.reg .b32 %s, %n;\n.reg .pred P;"]
    body += ["mul.wide.u32 %x, %thread, 16;\nadd.u64 %from, %g0, %x;\nadd.u64 %to, %g1, %x;"]
    body += [f"mul.lo.u32 %s, %thread, 16;\nadd.u32 %s, %s, %window;\nadd.u32 %s, %s, {DATA};"]
    body += [f"setp.eq.u32 P, %thread, 0;\n@P mbarrier.init.shared.b64 [%window + {BARRIER}], 32;\nbar.sync 0;"]
    for n, (cache, size, valid) in enumerate(copies):
        place = f"%s + {n * 512}"
        body.append(f"st.shared.v2.b64 [{place}], {{-1, -1}};")
        read = ""
        if valid is not None:
            body.append(f"mov.u32 %n, {valid};")
            read = ", %n"
        body.append(f"cp.async.{cache}.shared.global [{place}], [%from], {size}{read};")
        if n % 3 == 0:
            body.append("cp.async.commit_group;")
    for n in range(len(copies)):
        if n == 0:
            body.append("cp.async.wait_group 2;")
        if n == 4:
            body.append("cp.async.wait_all;")
        if n < 1 or n >= 4:
            body.append(_shared_to_out(n))
    body.append(f"cp.async.cg.shared.global [%s], [%from + 512], 16;\n{_arrive_and_wait()}")
    body.append(_shared_to_out(0, len(copies)))
    ptx = kernel("\n".join(body), 2, shared=1)
    arrays = {"in": random_bytes(1024, 4), "out": np.zeros((len(copies) + 1, 512), np.uint8)}
    return Program("cp_async", ptx, arrays, shared=DATA + 512 * len(copies), rows=tuple(map(str, copies)))


def _shared_to_out(row: int, to: int | None = None) -> str:
    to = row if to is None else to
    return f"ld.shared.v2.b64 {{D0, D1}}, [%s + {row * 512}];\nst.global.v2.b64 [%to + {to * 512}], {{D0, D1}};"


def _arrive_and_wait() -> str:
    return f"cp.async.mbarrier.arrive.noinc.shared.b64 [%window + {BARRIER}];\n{wait_for(BARRIER, 0, 'cp')}"


def wait_for(barrier: int, parity: int, label: str) -> str:
    """Uses the predicate P."""
    again = f"again_{label}"
    wait = f"mbarrier.try_wait.parity.shared::cta.b64 P, [%window + {barrier}], {parity};"
    return f"{again}:\n{wait}\n@!P bra {again};"


def bulk() -> Program:
    """A bulk load that completes an mbarrier, then a bulk store, of 1 KiB."""
    body = f"""
.reg .pred P, %first;
setp.eq.u32 %first, %thread, 0;
@%first mbarrier.init.shared.b64 [%window + {BARRIER}], 1;
fence.proxy.async.shared::cta;
bar.sync 0;
@!%first bra loaded;
mbarrier.arrive.expect_tx.shared.b64 _, [%window + {BARRIER}], 1040;
.reg .b32 %s;
add.u32 %s, %window, {DATA};
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%s], [%g0], 1024, [%window + {BARRIER}];
add.u32 %s, %window, {DATA + 1024};
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%s], [%g0 + 48], 16, [%window + {BARRIER}];
loaded:
{wait_for(BARRIER, 0, "bulk")}
.reg .b32 %v, %a;
mul.lo.u32 %a, %thread, 4;
add.u32 %a, %a, %window;
ld.shared.b32 %v, [%a + {DATA}];
add.u32 %v, %v, 1;
st.shared.b32 [%a + {DATA}], %v;
fence.proxy.async.shared::cta;
bar.sync 0;
@!%first bra stored;
add.u32 %s, %window, {DATA};
cp.async.bulk.global.shared::cta.bulk_group [%g1], [%s], 1040;
cp.async.bulk.commit_group;
cp.async.bulk.wait_group.read 0;
cp.async.bulk.wait_group 0;
stored:
"""
    arrays = {"in": random_bytes(1024, 5), "out": np.zeros(1040, np.uint8)}
    return Program("bulk", kernel(body, 2, shared=1), arrays, shared=DATA + 2048)


def programs() -> list[Program]:
    return [load_store(), atomics(), cp_async(), bulk()]
