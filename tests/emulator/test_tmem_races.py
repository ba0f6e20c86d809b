"""The order in tensor memory that PTX asks for: of two kernels that differ in one instruction the one is right, the
other a race, whatever the schedule made of it."""

import itertools
import re

import numpy as np
import pytest

from tests.emulator.control import FAIR, SKEWED, Run, emulator_alone

FRAME = """
.version 9.0
.target sm_100a
.address_size 64
.extern .shared .align 1024 .b8 memory[];
.visible .entry test(.param .u64 data)
{{
  .reg .pred %p<9>;
  .reg .b32 %r<20>;
  .reg .b64 %rd<9>;
  mov.u32 %r0, %tid.x;
  mov.u32 %r1, memory;
  setp.eq.u32 %p0, %r0, 0;
  setp.eq.u32 %p1, %r0, 128;
  setp.lt.u32 %p2, %r0, 32;
  setp.lt.u32 %p3, %r0, 128;
  setp.ne.u32 %p4, %r0, %r0;
  and.b32 %r2, %r0, 31;
  setp.eq.u32 %p5, %r2, 0;
  mov.b32 %r3, {narrow};
  mov.b32 %r4, {wide};
  mov.u64 %rd1, 70437464178688;
  add.u32 %r5, %r1, 16384;
  shr.u32 %r5, %r5, 4;
  cvt.u64.u32 %rd2, %r5;
  or.b64 %rd1, %rd1, %rd2;
  @%p0 mbarrier.init.shared.b64 [%r1+1024], 1;
  @%p0 mbarrier.init.shared.b64 [%r1+1032], 1;
  @%p0 mbarrier.init.shared.b64 [%r1+1040], 4;
  @%p2 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1+2048], 64;
  bar.sync 0;
  ld.shared.u32 %r8, [%r1+2048];
  add.u32 %r9, %r8, 32;
{body}
  @%p2 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r8, 64;
  ret;
}}
"""
# %p0 thread 0, %p1 thread 128, %p2 warp 0, %p3 warps 0 to 3, %p5 a warp's first lane; warps 0 and 4 reach the same
# lanes.
# %r3, %r4: products of 128 rows and 16 or 32 columns (bf16, fp32). %rd1: 128 rows of 32 bytes; %r9: other columns.
NARROW, WIDE = (1 << 4 | 1 << 7 | 1 << 10 | 8 << 24 | columns // 8 << 17 for columns in (16, 32))
LOAD = "tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r10}, [%r8];\n"
STORE = "tcgen05.st.sync.aligned.32x32b.x1.b32 [%r8], {%r0};\n"
WAIT_LD = "tcgen05.wait::ld.sync.aligned;\n"
WAIT_ST = "tcgen05.wait::st.sync.aligned;\n"
BEFORE = "tcgen05.fence::before_thread_sync;\n"
AFTER = "tcgen05.fence::after_thread_sync;\n"
BARRIER = "bar.sync 1, 256;\n"
COPY = "@%p0 tcgen05.cp.cta_group::1.128x256b [%r8], %rd1;\n"
PRODUCT = "@%p0 tcgen05.mma.cta_group::1.kind::f16 [%r8], %rd1, %rd1, %r3, %p4;\n"
WIDE_PRODUCT = PRODUCT.replace("%r3", "%r4")
OTHER_SUMS = PRODUCT.replace("[%r8]", "[%r9]")
# Its left operand is in tensor memory.
NEXT_PRODUCT = OTHER_SUMS.replace("%rd1,", "[%r8],", 1)
COMMIT = "@%p0 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%r1+1024];\n"
WAIT = "LOOP:\nmbarrier.try_wait.parity.shared.b64 %p6, [%r1+1024], 0;\n@!%p6 bra LOOP;\n"
SECOND_COMMIT, SECOND_WAIT = (x.replace("1024", "1032").replace("LOOP", "AGAIN") for x in (COMMIT, WAIT))
END = BEFORE + "bar.sync 0;\n"
LOADED = WAIT_LD + END
STORED = WAIT_ST + END
COMPLETE = SECOND_COMMIT + SECOND_WAIT + END


labels = itertools.count()


def by(predicate, block):
    """Of the threads whose predicate holds; with an ! before it, of the others."""
    skip = f"@{predicate[1:]}" if predicate[0] == "!" else f"@!{predicate}"
    label = f"DONE{next(labels)}"
    return f"{skip} bra {label};\n{block}{label}:\n"


def first(block):
    return by("%p3", block)


def second(block):
    return by("!%p3", block)


THREAD_1 = "setp.eq.u32 %p7, %r0, 1;\n"

# name: (what comes before, the instruction in question, what comes after)
PAIRS = {
    "a load of what one has stored": (AFTER + first(STORE), WAIT_ST, first(LOAD) + LOADED),
    "a store to what one has loaded": (AFTER + first(LOAD), WAIT_LD, first(STORE) + WAIT_LD + STORED),
    "two stores of one's own": (AFTER + first(STORE), WAIT_ST, first(STORE) + STORED),
    "a load of another's store: wait": (
        AFTER + first(STORE),
        WAIT_ST,
        BEFORE + BARRIER + AFTER + second(LOAD) + LOADED,
    ),
    "a load of another's store: fence before": (
        AFTER + first(STORE + WAIT_ST),
        BEFORE,
        BARRIER + AFTER + second(LOAD) + LOADED,
    ),
    "a load of another's store: barrier": (
        AFTER + first(STORE + WAIT_ST) + BEFORE,
        BARRIER,
        AFTER + second(LOAD) + LOADED,
    ),
    "a load of another's store: fence after": (
        AFTER + first(STORE + WAIT_ST) + BEFORE + BARRIER,
        AFTER,
        second(LOAD) + LOADED,
    ),
    "a store to what another loads: wait": (
        AFTER + first(LOAD),
        WAIT_LD,
        BEFORE + BARRIER + AFTER + second(STORE) + STORED,
    ),
    "a store to what another loads: fence before": (
        AFTER + first(LOAD + WAIT_LD),
        BEFORE,
        BARRIER + AFTER + second(STORE) + STORED,
    ),
    "a store to what another loads: fence after": (
        AFTER + first(LOAD + WAIT_LD) + BEFORE + BARRIER,
        AFTER,
        second(STORE) + STORED,
    ),
    "a load of sums: wait": (AFTER + PRODUCT + COMMIT, WAIT, AFTER + LOAD + LOADED + WAIT.replace("LOOP", "LATER")),
    "a load of sums: fence after": (AFTER + PRODUCT + COMMIT + WAIT, AFTER, LOAD + LOADED),
    "a load of what is copied: fence after": (AFTER + COPY + COMMIT + WAIT, AFTER, LOAD + LOADED),
    "a product over what others load: wait": (
        AFTER + LOAD,
        WAIT_LD,
        BEFORE + BARRIER + AFTER + PRODUCT + COMPLETE + WAIT_LD,
    ),
    "a product over what others load: fence before": (
        AFTER + LOAD + WAIT_LD,
        BEFORE,
        BARRIER + AFTER + PRODUCT + COMPLETE,
    ),
    "a product over what others load: fence after": (
        AFTER + LOAD + WAIT_LD + BEFORE + BARRIER,
        AFTER,
        PRODUCT + COMPLETE,
    ),
    "a product of what others store: wait": (
        AFTER + first(STORE),
        WAIT_ST,
        BEFORE + BARRIER + AFTER + NEXT_PRODUCT + COMPLETE + WAIT_ST,
    ),
    "a product of sums: wait": (
        AFTER + PRODUCT + COMMIT,
        WAIT,
        AFTER + NEXT_PRODUCT + WAIT.replace("LOOP", "L") + COMPLETE,
    ),
    "a product of sums: fence after": (AFTER + PRODUCT + COMMIT + WAIT, AFTER, NEXT_PRODUCT + COMPLETE),
    "a product of another shape": (AFTER + PRODUCT + COMMIT + WAIT, AFTER, WIDE_PRODUCT + COMPLETE),
    "a copy over what a product reads": (AFTER + COPY + NEXT_PRODUCT + COMMIT + WAIT, AFTER, COPY + COMPLETE),
    "a copy over a copy": (AFTER + COPY + COMMIT + WAIT, AFTER, COPY + COMPLETE),
    "a copy, then another thread's product: fence before": (
        AFTER + COPY,
        BEFORE,
        BARRIER + AFTER + (NEXT_PRODUCT + SECOND_COMMIT).replace("%p0", "%p1") + SECOND_WAIT + COMMIT + WAIT + END,
    ),
    "a copy, then another thread's product: fence after": (
        AFTER + COPY + BEFORE + BARRIER,
        AFTER,
        (NEXT_PRODUCT + SECOND_COMMIT).replace("%p0", "%p1") + SECOND_WAIT + COMMIT + WAIT + END,
    ),
    "products of two threads of a warp": (
        AFTER + PRODUCT + COMMIT + BEFORE,
        BARRIER,
        AFTER + THREAD_1 + (PRODUCT + SECOND_COMMIT).replace("%p0", "%p7") + WAIT + SECOND_WAIT + END,
    ),
    "what another warp has allocated": ("", AFTER, second(STORE) + STORED),
    "the end of what is stored: wait": (AFTER + first(STORE), WAIT_ST, END + WAIT_ST),
    "the end of what is stored: fence before": (AFTER + first(STORE) + WAIT_ST, BEFORE, "bar.sync 0;\n"),
    "the end of what is loaded: fence before": (AFTER + LOAD + WAIT_LD, BEFORE, "bar.sync 0;\n"),
    "the end of sums": (AFTER + PRODUCT + COMMIT, WAIT, "bar.sync 0;\n" + second(WAIT.replace("LOOP", "LATER"))),
}


def run(schedule, body, **options):
    emulator = emulator_alone()
    emulator.configure(Run("test", schedule, races=True, proxy_fences=False))
    frame = FRAME.format(body=body, narrow=NARROW, wide=WIDE)
    emulator.run_ptx(frame, np.zeros(1, np.uint32), **({"threads": 256, "shared": 65536} | options))


@pytest.mark.parametrize("schedule", [FAIR, SKEWED])
@pytest.mark.parametrize("name", PAIRS)
def test_one_instruction_orders(name, schedule):
    before, instruction, after = PAIRS[name]
    run(schedule, before + instruction + after)
    with pytest.raises(RuntimeError, match="race on tensor memory"):
        run(schedule, before + after)


# Synchronisation that is there, in vain.
VAIN = {
    "a fence before what it orders": AFTER + first(BEFORE + STORE + WAIT_ST) + BARRIER + AFTER + second(LOAD) + LOADED,
    "a fence before the wait": AFTER + first(STORE + BEFORE + WAIT_ST) + BARRIER + AFTER + second(LOAD) + LOADED,
    "the other kind's wait": AFTER + first(STORE + WAIT_LD) + BEFORE + BARRIER + AFTER + second(LOAD) + LOADED,
    "a fence after the barrier, where it is to come before": (
        AFTER + first(STORE + WAIT_ST) + BARRIER + BEFORE + AFTER + second(LOAD) + LOADED
    ),
    "a fence before the barrier, where it is to come after": (
        AFTER + first(STORE + WAIT_ST) + BEFORE + AFTER + BARRIER + second(LOAD) + LOADED
    ),
    "one lane's fence before": (
        AFTER + first(STORE + WAIT_ST + by("%p5", BEFORE)) + BARRIER + AFTER + second(LOAD) + LOADED
    ),
    "one lane's fence after": (
        AFTER + first(STORE + WAIT_ST) + BEFORE + BARRIER + by("%p5", AFTER) + "bar.warp.sync -1;\n"
        + second(LOAD) + LOADED
    ),
    "all lanes' fences, and the arrival of one that has not met them": (
        AFTER + first(STORE + WAIT_ST + BEFORE + by("%p5", "mbarrier.arrive.shared.b64 _, [%r1+1040];\n"))
        + WAIT.replace("1024", "1040") + AFTER + second(LOAD) + LOADED
    ),
    "a commit before the product": AFTER + COMMIT + PRODUCT + WAIT + AFTER + LOAD + LOADED,
    "another thread's commit": AFTER + PRODUCT + BARRIER + COMMIT.replace("%p0", "%p1") + WAIT + AFTER + LOAD + LOADED,
    "the commit of another thread of the warp": (
        AFTER + PRODUCT + BARRIER + THREAD_1 + COMMIT.replace("%p0", "%p7") + WAIT + AFTER + LOAD + LOADED
    ),
    "an arrival that is no commit": (
        AFTER + PRODUCT + BEFORE + "@%p0 mbarrier.arrive.shared.b64 _, [%r1+1024];\n" + WAIT + AFTER + LOAD + LOADED
    ),
    "a fence after, by other threads": AFTER + PRODUCT + COMMIT + WAIT + first(AFTER) + second(LOAD) + LOADED,
}  # fmt: skip


@pytest.mark.parametrize("name", VAIN)
def test_in_vain(name):
    with pytest.raises(RuntimeError, match="race on tensor memory"):
        run(FAIR, VAIN[name])


NONE = {
    "products on the same sums": AFTER + PRODUCT + PRODUCT + COMPLETE,
    "a copy, then its product": AFTER + COPY + NEXT_PRODUCT + COMPLETE,
    "products that read the same": AFTER + COPY + NEXT_PRODUCT + NEXT_PRODUCT + COMPLETE,
    "two loads": AFTER + LOAD + LOAD + LOADED,
    "loads of two warps": AFTER + first(STORE) + WAIT_ST + BEFORE + BARRIER + AFTER + LOAD + LOADED,
    "other lanes": AFTER + first(STORE) + STORED,
    "other columns": AFTER + first(STORE) + second(STORE.replace("%r8", "%r8+1")) + STORED,
    "all lanes' fences, and the arrival of one that has met them": (
        AFTER + first(STORE + WAIT_ST + BEFORE + "bar.warp.sync -1;\n"
                      + by("%p5", "mbarrier.arrive.shared.b64 _, [%r1+1040];\n"))
        + WAIT.replace("1024", "1040") + AFTER + second(LOAD) + LOADED
    ),
    "lane by lane": (
        AFTER + "shl.b32 %r11, %r2, 3;\nadd.u32 %r11, %r11, %r1;\n"
        + "@%p2 mbarrier.init.shared.b64 [%r11+4096], 1;\n" + BARRIER
        + by("%p2", STORE + WAIT_ST + BEFORE + "mbarrier.arrive.shared.b64 _, [%r11+4096];\n")
        + "shr.u32 %r12, %r0, 5;\nsetp.eq.u32 %p7, %r12, 4;\n"
        + by("%p7", WAIT.replace("%r1+1024", "%r11+4096") + AFTER + LOAD + WAIT_LD) + END
    ),
    "by way of a third, who needs no fences": (
        AFTER + by("%p2", STORE + WAIT_ST + BEFORE + "barrier.sync 2, 64;\n")
        + "setp.eq.u32 %p7, %r2, %r2;\nshr.u32 %r11, %r0, 5;\nsetp.eq.u32 %p7, %r11, 1;\n"
        + by("%p7", "barrier.sync 2, 64;\nbar.sync 3, 64;\n") + "setp.eq.u32 %p7, %r11, 4;\n"
        + by("%p7", "barrier.sync 3, 64;\n" + AFTER + LOAD + WAIT_LD) + END
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NONE)
def test_no_false_report(name):
    run(FAIR, NONE[name])


CLUSTER_BARRIER = "barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n"
# Of both CTAs' columns, issued by the first.
PAIR_PRODUCT = """
mov.u32 %r12, %cluster_ctarank;
setp.eq.u32 %p7, %r12, 0;
and.pred %p7, %p7, %p0;
mov.b32 %r13, {pair};
mov.b32 %r14, 3;
@%p7 tcgen05.mma.cta_group::2.kind::f16 [%r8], %rd1, %rd1, %r13, %p4;
@%p7 tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 [%r1+1024], %r14;
""".replace("{pair}", str(WIDE + (8 << 24)))


@pytest.mark.parametrize(
    "before, instruction, after",
    [
        (CLUSTER_BARRIER, AFTER, PAIR_PRODUCT + WAIT + AFTER + LOAD + LOADED),
        (AFTER + CLUSTER_BARRIER + AFTER + PAIR_PRODUCT, WAIT, AFTER + LOAD + LOADED + WAIT.replace("LOOP", "LATER")),
        (AFTER + CLUSTER_BARRIER + AFTER + PAIR_PRODUCT + WAIT, AFTER, LOAD + LOADED),
    ],
    ids=["the other CTA's allocation", "wait", "fence after"],
)
def test_a_pair(before, instruction, after):
    run(FAIR, before + instruction + after, grid=2, cluster=2)
    with pytest.raises(RuntimeError, match="race on tensor memory.*"):
        run(FAIR, before + after, grid=2, cluster=2)


@pytest.mark.parametrize(
    "body, reason",
    [
        (PAIRS["a load of what one has stored"], "no tcgen05.wait::st follows"),
        (
            PAIRS["a load of another's store: fence before"],
            "no barrier with a tcgen05.fence::before_thread_sync before",
        ),
        (PAIRS["a load of another's store: fence after"], "no tcgen05.fence::after_thread_sync orders"),
        (PAIRS["the end of sums"], "nothing orders"),
    ],
)
def test_the_report_says_what_is_missing(body, reason):
    with pytest.raises(RuntimeError, match=reason):
        run(FAIR, body[0] + body[2])


def test_the_report_names_both_accesses():
    before, _, after = PAIRS["a load of another's store: fence before"]
    with pytest.raises(RuntimeError) as error:
        run(FAIR, before + after)
    lanes, storing, loading = re.search(
        r"race on tensor memory at lanes (\d+) to \d+, column 0: .*\n *a store by warp (\d)\n *tcgen05.st.*\n"
        r" *PTX line \d+\n *before a load by warp (\d)\n *tcgen05.ld.*\n *PTX line \d+",
        str(error.value),
    ).groups()
    assert int(lanes) // 32 == int(storing) == int(loading) - 4
