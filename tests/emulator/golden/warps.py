"""Programs in which threads take part together: warps, barriers, mbarriers, clusters."""

import numpy as np

from .memory import BARRIER, DATA, wait_for
from .program import Program, kernel

ALL = "0xffffffff"
SHUFFLES = [
    *(f"shfl.sync.idx.b32 D4|Q, A4, B4, {clamp:#x}, {ALL}" for clamp in (0x1F, 0x181F, 0x1C07, 0x0F)),
    *(f"shfl.sync.idx.b32 D4|Q, A4, {lane}, 0x1f, {ALL}" for lane in (0, 31, 33)),
    *(f"shfl.sync.bfly.b32 D4|Q, A4, {by}, {clamp:#x}, {ALL}" for by in (1, 16, 31) for clamp in (0x1F, 0x181F)),
    f"shfl.sync.bfly.b32 D4|Q, A4, 12, 0x7, {ALL}",
    *(f"shfl.sync.up.b32 D4|Q, A4, {by}, {clamp:#x}, {ALL}" for by in (0, 1, 9, 32) for clamp in (0, 0x1800, 4)),
    *(f"shfl.sync.down.b32 D4|Q, A4, {by}, {clamp:#x}, {ALL}" for by in (0, 2, 9, 31) for clamp in (0x1F, 0x1C1F, 20)),
]
VOTES = [
    *(f"vote.sync.{how}.pred Q, {p}, {ALL}" for how in ("any", "all", "uni") for p in ("P", "!P", "T", "!T")),
    *(f"vote.sync.ballot.b32 D4, {p}, {ALL}" for p in ("P", "!P", "T")),
]
REDUCTIONS = [
    *(f"redux.sync.{how}.{t} D4, A4, {ALL}" for how in ("add", "min", "max") for t in ("s32", "u32")),
    *(f"redux.sync.{how}.b32 D4, A4, {ALL}" for how in ("and", "or", "xor")),
]
OTHER = [f"elect.sync D4|Q, {ALL}", "activemask.b32 D4", f"bar.warp.sync {ALL}"]
# By the lanes with P alone, whose mask is M.
PARTIAL = [
    "vote.sync.ballot.b32 D4, T, M",
    "vote.sync.all.pred Q, T, M",
    "redux.sync.add.u32 D4, A4, M",
    "redux.sync.min.s32 D4, A4, M",
    "elect.sync D4|Q, M",
    "shfl.sync.idx.b32 D4|Q, A4, 4, 0x1f, M",
    "bar.warp.sync M",
]
SPECIAL = [
    "tid.x ntid.x ctaid.x nctaid.x laneid lanemask_eq lanemask_lt lanemask_le lanemask_gt lanemask_ge",
    "cluster_ctarank cluster_nctarank cluster_ctaid.x cluster_nctaid.x clusterid.x nclusterid.x dynamic_smem_size",
    "tid.y ntid.y ctaid.y nctaid.y",
]


def warp() -> Program:
    rows = [*SHUFFLES, *VOTES, *REDUCTIONS, *OTHER]
    body = [".reg .b32 A4, B4, D4, M;\n.reg .pred P, Q, T;\n.reg .b64 %x, %out;\n.reg .b32 Q4;"]
    body += ["mul.wide.u32 %x, %thread, 4;\nadd.u64 %g0, %g0, %x;\nadd.u64 %g1, %g1, %x;"]
    body += ["mul.wide.u32 %x, %thread, 8;\nadd.u64 %out, %g2, %x;"]
    body += ["ld.global.b32 A4, [%g0];\nld.global.b32 B4, [%g1];"]
    body += ["and.b32 M, A4, 1;\nsetp.ne.u32 P, M, 0;\nsetp.lt.u32 T, %thread, 32;"]

    def out(text: str) -> str:
        row = len(rows_done) * 32 * 8
        rows_done.append(text)
        return (
            f"mov.b32 D4, 0;\nsetp.ne.u32 Q, %thread, %thread;\n{text};\nselp.u32 Q4, 1, 0, Q;\n"
            f"st.global.v2.b32 [%out + {row}], {{D4, Q4}};"
        )

    rows_done: list[str] = []
    body += [out(text) for text in rows]
    body += [f"vote.sync.ballot.b32 M, P, {ALL};\n@!P bra joined;"]
    body += [out(text) for text in PARTIAL]
    body += ["joined:"]
    rng = np.random.RandomState(50)
    a = rng.randint(0, 2**32, 32).astype(np.uint32)
    a[4] |= 1
    arrays = {"a": a, "b": rng.randint(0, 64, 32).astype(np.uint32), "out": np.zeros((len(rows_done), 64), np.uint32)}
    return Program("warp", kernel("\n".join(body), 3), arrays, rows=tuple(rows_done))


def special_registers() -> Program:
    names = " ".join(SPECIAL).split()
    body = [".reg .b32 D4, %t;\n.reg .b64 %x;\nmov.u32 %t, %ctaid.x;"]
    body += ["mad.lo.u32 %t, %t, 64, %thread;\nmul.wide.u32 %x, %t, 4;\nadd.u64 %g0, %g0, %x;"]
    body += [f"mov.u32 D4, %{name};\nst.global.b32 [%g0 + {n * 4 * 256}], D4;" for n, name in enumerate(names)]
    arrays = {"out": np.zeros((len(names), 256), np.uint32)}
    text = kernel("\n".join(body), 1, shared=1, cluster=2)
    return Program("special_registers", text, arrays, threads=64, grid=4, cluster=2, shared=96, rows=tuple(names))


def barriers() -> Program:
    """Four warps hand numbers round: whole-CTA barriers, barriers of two warps, producers that only arrive."""
    body = """
.reg .b32 %w, %a, %v, %u, %b;
.reg .b64 %x;
.reg .pred %low, %even, %half;
shr.u32 %w, %thread, 5;
setp.lt.u32 %low, %w, 2;
mul.lo.u32 %a, %thread, 4;
add.u32 %a, %a, %window;
mul.wide.u32 %x, %thread, 4;
add.u64 %g0, %g0, %x;
mad.lo.u32 %v, %thread, 7, 3;
st.shared.b32 [%a], %v;
bar.sync 0;
xor.b32 %b, %thread, 96;
mul.lo.u32 %b, %b, 4;
add.u32 %b, %b, %window;
ld.shared.b32 %v, [%b];
st.global.b32 [%g0], %v;
barrier.sync.aligned 1, 128;
@!%low bra consumer;
mad.lo.u32 %v, %thread, 11, 5;
st.shared.b32 [%a + 1024], %v;
bar.arrive 2, 128;
barrier.sync 3, 64;
xor.b32 %b, %thread, 32;
mul.lo.u32 %b, %b, 4;
add.u32 %b, %b, %window;
ld.shared.b32 %v, [%b + 1024];
st.global.b32 [%g0 + 512], %v;
bra joined;
consumer:
bar.sync 2, 128;
sub.u32 %b, %thread, 64;
mul.lo.u32 %b, %b, 4;
add.u32 %b, %b, %window;
ld.shared.b32 %v, [%b + 1024];
st.global.b32 [%g0 + 512], %v;
joined:
mov.u32 %u, 4;
bar.sync %u, 128;
membar.cta;
fence.acq_rel.gpu;
ld.shared.b32 %v, [%a];
st.global.b32 [%g0 + 1024], %v;
"""
    arrays = {"out": np.zeros((3, 128), np.uint32)}
    return Program("barriers", kernel(body, 1, shared=1), arrays, threads=128, shared=2048)


def mbarriers() -> Program:
    """A phase ends with the last arrival and the last byte: one thread arrives in every way and waits for each."""
    phases = [
        ["arrive.shared.b64 _, [%window]", "arrive.shared.b64 _, [%window], 2"],
        [
            "arrive.expect_tx.shared.b64 _, [%window], 48",
            "arrive.shared.b64 _, [%window], 2",
            "complete_tx.shared::cta.relaxed.cta.b64 [%window], 32",
            "complete_tx.shared::cta.relaxed.cta.b64 [%window], 16",
        ],
        [
            "expect_tx.relaxed.cta.shared::cta.b64 [%window], 8",
            "arrive.release.cta.shared::cta.b64 _, [%window], 3",
            "complete_tx.shared::cta.relaxed.cta.b64 [%window], 8",
        ],
        ["arrive.shared.b64 _, [%window], 3"],
    ]
    body = [".reg .pred P, %other;\n.reg .b32 D4;\nsetp.ne.u32 %other, %thread, 0;\n@%other ret;"]
    body += ["mbarrier.init.shared.b64 [%window], 3;"]
    for n, steps in enumerate(phases):
        body += [f"mbarrier.{step};" for step in steps]
        body += [wait_for(0, n % 2, f"phase{n}"), f"selp.u32 D4, {n + 1}, 0, P;\nst.global.b32 [%g0 + {4 * n}], D4;"]
    body += ["mbarrier.inval.shared.b64 [%window];\nmbarrier.init.shared.b64 [%window], 1;"]
    body += ["mbarrier.arrive.shared.b64 _, [%window];", wait_for(0, 0, "again"), "st.global.b32 [%g0 + 16], 5;"]
    arrays = {"out": np.zeros(5, np.uint32)}
    return Program("mbarriers", kernel("\n".join(body), 1, shared=1), arrays, shared=64)


def pipeline() -> Program:
    """A producer warp and a consumer warp, through two mbarriers and one buffer, for eight rounds."""
    body = f"""
.reg .pred P, %producer, %first, %more;
.reg .b32 %a, %v, %n, %parity, %lane;
.reg .b64 %x;
setp.eq.u32 %first, %thread, 0;
setp.lt.u32 %producer, %thread, 32;
@%first mbarrier.init.shared.b64 [%window + {BARRIER}], 32;
@%first mbarrier.init.shared.b64 [%window + {BARRIER + 8}], 32;
bar.sync 0;
and.b32 %lane, %thread, 31;
mul.lo.u32 %a, %lane, 4;
add.u32 %a, %a, %window;
mul.wide.u32 %x, %lane, 4;
add.u64 %g0, %g0, %x;
mov.u32 %n, 0;
@!%producer bra consumer;
produce:
and.b32 %parity, %n, 1;
xor.b32 %parity, %parity, 1;
full:
mbarrier.try_wait.parity.shared::cta.b64 P, [%window + {BARRIER + 8}], %parity;
@!P bra full;
mad.lo.u32 %v, %n, 100, %lane;
st.shared.b32 [%a + {DATA}], %v;
mbarrier.arrive.shared.b64 _, [%window + {BARRIER}];
add.u32 %n, %n, 1;
setp.lt.u32 %more, %n, 8;
@%more bra produce;
ret;
consumer:
and.b32 %parity, %n, 1;
empty:
mbarrier.try_wait.parity.shared::cta.b64 P, [%window + {BARRIER}], %parity;
@!P bra empty;
xor.b32 %v, %a, 64;
ld.shared.b32 %v, [%v + {DATA}];
st.global.b32 [%g0], %v;
mbarrier.arrive.shared.b64 _, [%window + {BARRIER + 8}];
add.u64 %g0, %g0, 128;
add.u32 %n, %n, 1;
setp.lt.u32 %more, %n, 8;
@%more bra consumer;
"""
    arrays = {"out": np.zeros((8, 32), np.uint32)}
    return Program("pipeline", kernel(body, 1, shared=1), arrays, threads=64, shared=DATA + 256)


def cluster() -> Program:
    """Two CTAs read and write each other's shared memory and arrive at each other's mbarriers."""
    body = f"""
.reg .pred P, %first;
.reg .b32 %rank, %other, %a, %b, %v, %q, %barrier;
.reg .b64 %x, %y, %z;
mov.u32 %rank, %cluster_ctarank;
xor.b32 %other, %rank, 1;
setp.eq.u32 %first, %thread, 0;
@%first mbarrier.init.shared.b64 [%window + {BARRIER}], 32;
@%first mbarrier.init.shared.b64 [%window + {BARRIER + 8}], 1;
fence.mbarrier_init.release.cluster;
mul.lo.u32 %a, %thread, 4;
add.u32 %a, %a, %window;
mad.lo.u32 %v, %rank, 1000, %thread;
st.shared.b32 [%a + {DATA}], %v;
barrier.cluster.arrive.release.aligned;
barrier.cluster.wait.acquire.aligned;
mapa.shared::cluster.u32 %b, %a, %other;
ld.shared::cluster.b32 %v, [%b + {DATA}];
mul.wide.u32 %x, %rank, 1024;
mul.wide.u32 %y, %thread, 4;
add.u64 %g0, %g0, %x;
add.u64 %g0, %g0, %y;
st.global.b32 [%g0], %v;
cvt.u64.u32 %z, %a;
cvta.shared.u64 %z, %z;
mapa.u64 %z, %z, %other;
ld.b32 %v, [%z + {DATA}];
st.global.b32 [%g0 + 128], %v;
getctarank.shared::cluster.u32 %q, %b;
st.global.b32 [%g0 + 256], %q;
add.u32 %v, %thread, 5;
st.shared::cluster.b32 [%b + {DATA + 256}], %v;
mapa.shared::cluster.u32 %barrier, %window, %other;
mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%barrier + {BARRIER}];
{wait_for(BARRIER, 0, "remote")}
ld.shared.b32 %v, [%a + {DATA + 256}];
st.global.b32 [%g0 + 384], %v;
@%first mbarrier.arrive.expect_tx.shared.b64 _, [%window + {BARRIER + 8}], 256;
add.u32 %v, %v, %rank;
mad.lo.u32 %b, %thread, 4, %b;
st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32
  [%b + {DATA + 512}], {{%v, %thread}}, [%barrier + {BARRIER + 8}];
{wait_for(BARRIER + 8, 0, "sent")}
mad.lo.u32 %a, %thread, 4, %a;
ld.shared.v2.b32 {{%v, %q}}, [%a + {DATA + 512}];
st.global.b32 [%g0 + 512], %v;
st.global.b32 [%g0 + 640], %q;
barrier.cluster.arrive.aligned;
barrier.cluster.wait.aligned;
"""
    arrays = {"out": np.zeros((2, 8, 32), np.uint32)}
    return Program(
        "cluster", kernel(body, 1, shared=1, cluster=2), arrays, threads=32, grid=2, cluster=2, shared=DATA + 1024
    )


def programs() -> list[Program]:
    return [warp(), special_registers(), barriers(), mbarriers(), pipeline(), cluster()]
