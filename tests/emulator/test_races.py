"""The emulator's happens-before checker: of two kernels that differ in one instruction the one is right, the other a
race, whatever the schedule made of it."""

from dataclasses import replace

import numpy as np
import pytest

from tests.emulator.control import FAIR, SKEWED, Run, emulator_alone
from tests.emulator.golden import emulated, tma

FRAME = """
.version 9.0
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 memory[];
.visible .entry test(.param .u64 data)
{{
  .reg .pred %p<9>;
  .reg .b32 %r<99>;
  .reg .b64 %rd<9>;
  .reg .f32 %f<9>;
  .reg .b8 %b<9>;
  mov.u32 %r0, %tid.x;
  mov.u32 %r1, memory;
  ld.param.u64 %rd0, [data];
  setp.eq.u32 %p0, %r0, 0;
  setp.ne.u32 %p1, %r0, 0;
  shl.b32 %r2, %r0, 2;
  add.u32 %r3, %r1, %r2;
  xor.b32 %r4, %r0, 32;
  shl.b32 %r4, %r4, 2;
  add.u32 %r4, %r1, %r4;
  xor.b32 %r5, %r0, 1;
  shl.b32 %r5, %r5, 2;
  add.u32 %r5, %r1, %r5;
{body}
  ret;
}}
"""
# %r0 thread, %r1 the memory, %r3 the thread's word, %r4 the other warp's, %r5 the next lane's; %p0 thread 0, %p1 others
BARRIERS = "@%p0 mbarrier.init.shared.b64 [%r1+1024], {count};\nbar.sync 0;\n"
WAIT = "LOOP:\nmbarrier.try_wait.parity.shared.b64 %p2, [%r1+1024], 0;\n@!%p2 bra LOOP;\n"

# Of matrices at the memory's start: its first rows are 128 bytes.
PRODUCT = """
mov.u64 %rd1, 4611686018427387904;
mov.u32 %r6, memory;
shr.u32 %r6, %r6, 4;
cvt.u64.u32 %rd2, %r6;
or.b64 %rd1, %rd1, %rd2;
mov.f32 %f0, 0f00000000;
mov.f32 %f1, %f0;
mov.f32 %f2, %f0;
mov.f32 %f3, %f0;
setp.ne.u32 %p3, %r0, %r0;
wgmma.fence.sync.aligned;
wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0, %f1, %f2, %f3}, %rd1, %rd1, %p3, 1, 1, 0, 0;
wgmma.commit_group.sync.aligned;
"""
WAIT_FOR_PRODUCT = "wgmma.wait_group.sync.aligned 0;"

# Of 128 rows of 32 bytes, in cores of 8 rows of 16 bytes, to tensor memory.
ALLOCATE = (
    BARRIERS.format(count=1) + "setp.lt.u32 %p4, %r0, 32;\n"
    "@%p4 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1+2048], 32;\nbar.sync 0;\n"
    "ld.shared.u32 %r8, [%r1+2048];\n"
)
STORE_ROW = "st.shared.u32 [%r3+16384], %r0;\n"
TENSOR_COPY = """
mov.u64 %rd1, 70437464178688;
mov.u32 %r6, memory;
add.u32 %r6, %r6, 16384;
shr.u32 %r6, %r6, 4;
cvt.u64.u32 %rd2, %r6;
or.b64 %rd1, %rd1, %rd2;
@%p0 tcgen05.cp.cta_group::1.128x256b [%r8], %rd1;
@%p0 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%r1+1024];
"""
FREE = "bar.sync 0;\ntcgen05.fence::after_thread_sync;\n@%p4 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r8, 32;\n"

# name: (what comes before, the instruction in question, what comes after[, options of the launch])
PAIRS = {
    "read after write": ("st.shared.u32 [%r3], %r0;", "bar.sync 0;", "ld.shared.u32 %r9, [%r4];"),
    "write after read": ("ld.shared.u32 %r9, [%r4];", "bar.sync 0;", "st.shared.u32 [%r3], %r0;"),
    "write after write": ("st.shared.u32 [%r3], %r0;", "bar.sync 0;", "st.shared.u32 [%r4], %r0;"),
    "lanes of a warp": ("st.shared.u32 [%r3], %r0;", "bar.warp.sync -1;", "ld.shared.u32 %r9, [%r5];"),
    "atomics, then a read": ("atom.shared.add.u32 %r9, [%r1], 1;", "bar.sync 0;", "ld.shared.u32 %r9, [%r1];"),
    "a volatile write": ("@%p0 st.volatile.shared.u32 [%r1], 1;", "bar.sync 0;", "ld.shared.u32 %r9, [%r1];"),
    "another value": ("st.shared.u32 [%r1], 7;", "bar.sync 0;", "@%p0 st.shared.u32 [%r1], 8;"),
    "matrices": (
        "st.shared.u32 [%r3], %r0;",
        "bar.warp.sync -1;",
        "and.b32 %r6, %r3, -128;\nldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r9}, [%r6];",
    ),
    "arrival and wait": (
        BARRIERS.format(count=64) + "st.shared.u32 [%r3], %r0;\nmbarrier.arrive.shared.b64 _, [%r1+1024];",
        WAIT,
        "ld.shared.u32 %r9, [%r4];",
    ),
    "an mbarrier's initialisation": (
        "@%p0 mbarrier.init.shared.b64 [%r1+1024], 64;",
        "bar.sync 0;",
        "mbarrier.arrive.shared.b64 _, [%r1+1024];",
    ),
    "a copy of one's own": (
        "cp.async.ca.shared.global [%r3], [%rd0], 4;",
        "cp.async.wait_all;",
        "ld.shared.u32 %r9, [%r3];",
    ),
    "a group of copies": (
        "cp.async.ca.shared.global [%r3], [%rd0], 4;\ncp.async.commit_group;\n"
        "cp.async.ca.shared.global [%r3+512], [%rd0], 4;\ncp.async.commit_group;",
        "cp.async.wait_group 1;",
        "ld.shared.u32 %r9, [%r3];\ncp.async.wait_all;",
    ),
    "copies of others": (
        BARRIERS.format(count=64)
        + "cp.async.ca.shared.global [%r3], [%rd0], 4;\ncp.async.mbarrier.arrive.noinc.shared.b64 [%r1+1024];",
        WAIT,
        "ld.shared.u32 %r9, [%r4];",
    ),
    "a bulk copy": (
        BARRIERS.format(count=1) + "@%p0 mbarrier.arrive.expect_tx.shared.b64 _, [%r1+1024], 256;\n"
        "@%p0 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd0], 256, [%r1+1024];",
        WAIT,
        "ld.shared.u32 %r9, [%r3];",
    ),
    "a bulk store": (
        "st.shared.u32 [%r3], %r0;\nfence.proxy.async;\nbar.sync 0;\n"
        "@%p0 cp.async.bulk.global.shared::cta.bulk_group [%rd0], [%r1], 16;\n@%p0 cp.async.bulk.commit_group;",
        "@%p0 cp.async.bulk.wait_group.read 0;",
        "@%p0 st.shared.u32 [%r3], %r0;\n@%p0 cp.async.bulk.wait_group 0;",
    ),
    "a product": (
        PRODUCT,
        WAIT_FOR_PRODUCT,
        "bar.sync 0;\n@%p0 st.shared.u32 [%r1], %r0;\n" + WAIT_FOR_PRODUCT,
        {"threads": 128},
    ),
    "the other warps' shares of a product": (
        PRODUCT + WAIT_FOR_PRODUCT,
        "bar.sync 0;",
        "@%p0 st.shared.u32 [%r1], %r0;",
        {"threads": 128},
    ),
    "a copy to tensor memory": (
        ALLOCATE + STORE_ROW + "fence.proxy.async;\nbar.sync 0;" + TENSOR_COPY,
        WAIT,
        STORE_ROW + FREE,
        {"threads": 128},
    ),
    "what is copied to tensor memory": (
        ALLOCATE + STORE_ROW + "fence.proxy.async;",
        "bar.sync 0;",
        TENSOR_COPY + WAIT + FREE,
        {"threads": 128},
    ),
    "the address of tensor memory": (
        ALLOCATE.rpartition("bar.sync 0;")[0],
        "bar.sync 0;",
        "ld.shared.u32 %r8, [%r1+2048];\n" + FREE,
        {"threads": 128},
    ),
    "another CTA's memory": (
        "mov.u32 %r6, %cluster_ctarank;\nxor.b32 %r6, %r6, 1;\nmapa.shared::cluster.u32 %r7, %r3, %r6;\n"
        "barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\nst.shared::cluster.u32 [%r7], %r0;",
        "barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;",
        "ld.shared.u32 %r9, [%r3];",
        {"grid": 2, "cluster": 2},
    ),
}


# The other CTA writes and ends. An exit lets a barrier complete, but says nothing of what came before it.
PAIRS["a CTA that ends"] = (
    PAIRS["another CTA's memory"][0].rpartition("st.shared")[0]
    + "setp.eq.u32 %p4, %r6, 1;\n@%p4 bra LEADER;\nst.shared::cluster.u32 [%r7], %r0;",
    "barrier.cluster.arrive.aligned;",
    "ret;\nLEADER:\nbarrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\nld.shared.u32 %r9, [%r3];",
    {"grid": 2, "cluster": 2},
)
PAIRS["another CTA's end"] = (
    PAIRS["another CTA's memory"][0].replace("st.shared", "ld.shared").replace("[%r7], %r0", "%r9, [%r7]"),
    "barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;",
    "",
    {"grid": 2, "cluster": 2},
)
# To the other CTA, whose copy each has waited for.
COPY_TO_CTA = (
    "mov.u32 %r6, %cluster_ctarank;\nxor.b32 %r6, %r6, 1;\nmapa.shared::cluster.u32 %r7, %r1, %r6;\n"
    + BARRIERS.format(count=1)
    + "@%p0 mbarrier.arrive.expect_tx.shared.b64 _, [%r1+1024], 16;\n"
    "barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n"
    "@%p0 cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r7+512], [%r1], 16, [%r7+1024];\n"
    + WAIT
)
PAIRS["the end after a copy to another CTA"] = (
    COPY_TO_CTA,
    "barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;",
    "",
    {"grid": 2, "cluster": 2},
)
PAIRS["a write over what is copied to another CTA"] = (
    COPY_TO_CTA,
    "barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;",
    "@%p0 st.shared.u32 [%r1], 1;\nbarrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;",
    {"grid": 2, "cluster": 2},
)


def run(schedule, body, proxy_fences=False, **options):  # whose reports would come first
    emulator = emulator_alone()
    emulator.configure(Run("test", schedule, races=True, proxy_fences=proxy_fences))
    options = {"threads": 64, "shared": 65536} | options
    emulator.run_ptx(FRAME.format(body=body), np.zeros(1024, np.uint32), **options)


@pytest.mark.parametrize("schedule", [FAIR, SKEWED])
@pytest.mark.parametrize("name", PAIRS)
def test_one_instruction_orders(name, schedule):
    before, instruction, after, options = (*PAIRS[name], {})[:4]
    run(schedule, "\n".join((before, instruction, after)), **options)
    with pytest.raises(RuntimeError, match="race on shared memory at dynamic offset|not initialised|may end before"):
        run(schedule, "\n".join((before, after)), **options)


FENCE = "fence.proxy.async.shared::cta;"
STORE = "@%p0 st.shared.u32 [%r1], 1;"
COPY = "@%p0 cp.async.ca.shared.global [%r1], [%rd0], 4;"
BULK_STORE = (
    "@%p0 cp.async.bulk.global.shared::cta.bulk_group [%rd0], [%r1], 16;\n@%p0 cp.async.bulk.commit_group;\n"
    "@%p0 cp.async.bulk.wait_group 0;"
)
FIRST_WARP = "setp.lt.u32 %p4, %r0, 32;\n"
BULK_COPY = (
    "@%p0 mbarrier.arrive.expect_tx.shared.b64 _, [%r1+1024], 16;\n"
    "@%p0 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd0], 16, [%r1+1024];\n" + WAIT
)

# name: (what comes first, and what tells of it; the fence that is needed; what the async proxy does)
FENCES = {
    "the writer's": (STORE, "@%p0 " + FENCE, "bar.sync 0;" + PRODUCT),
    "all readers'": (STORE + "\nbar.sync 0;", FENCE, PRODUCT),
    "one reader's, who tells": (STORE + "\nbar.sync 0;\n" + FIRST_WARP, "@%p4 " + FENCE, "bar.sync 1;" + PRODUCT),
    "after an atomic operation": ("atom.shared.add.u32 %r9, [%r1], 1;", FENCE, "bar.sync 0;" + PRODUCT),
    "after a copy of one's own": (COPY + "\ncp.async.wait_all;", FENCE, "bar.sync 0;" + PRODUCT),
    "after copies of others": (
        BARRIERS.format(count=128) + COPY + "\ncp.async.mbarrier.arrive.noinc.shared.b64 [%r1+1024];\n" + WAIT,
        FENCE,
        PRODUCT,
    ),
    "of a bulk store": (STORE, "@%p0 " + FENCE, BULK_STORE),
    "a bulk copy of what was stored": (
        BARRIERS.format(count=1) + STORE + "@%p0 mbarrier.arrive.expect_tx.shared.b64 _, [%r1+1024], 16;\n",
        "@%p0 " + FENCE,
        "@%p0 cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes "
        "[%r1+512], [%r1], 16, [%r1+1024];\n" + WAIT,
    ),
    "a bulk copy over what was stored": (BARRIERS.format(count=1) + STORE, "@%p0 " + FENCE, BULK_COPY),
    "a bulk copy over a copy": (BARRIERS.format(count=1) + COPY + "\ncp.async.wait_all;", "@%p0 " + FENCE, BULK_COPY),
    "a bulk copy over others' stores": (
        BARRIERS.format(count=1) + "@%p1 st.shared.u32 [%r1], 1;\nbar.sync 0;",
        "@%p0 " + FENCE,
        BULK_COPY,
    ),
    "a bulk copy over an atomic operation": (
        BARRIERS.format(count=1) + "atom.shared.add.u32 %r9, [%r1], 1;\nbar.sync 0;",
        "@%p0 " + FENCE,
        BULK_COPY,
    ),
    "a bulk copy over what was read": (
        BARRIERS.format(count=1) + "ld.shared.u32 %r9, [%r1];",
        FENCE,
        "bar.sync 0;" + BULK_COPY,
    ),
    "of a copy to tensor memory": (ALLOCATE + STORE_ROW, FENCE, "bar.sync 0;" + TENSOR_COPY + WAIT + FREE),
}


@pytest.mark.parametrize("name", FENCES)
def test_a_proxy_fence_orders(name):
    before, fence, after = FENCES[name]
    options = {"threads": 128, "proxy_fences": True}
    run(FAIR, "\n".join((before, fence, after, WAIT_FOR_PRODUCT)), **options)
    with pytest.raises(RuntimeError, match="proxy fence"):
        run(FAIR, "\n".join((before, after, WAIT_FOR_PRODUCT)), **options)


def test_a_proxy_fence_orders_tma():
    box = tma.load("a box over what was stored", tma.INSIDE[0])
    ptx = box.ptx.replace(FENCE, f"st.shared.b32 [%window + {tma.DATA}], %window;\n{FENCE}")
    emulator = emulator_alone()
    emulator.configure(Run("test", races=True))
    emulated.run(emulator, replace(box, ptx=ptx))
    with pytest.raises(RuntimeError, match="no proxy fence orders"):
        emulated.run(emulator, replace(box, ptx=ptx.replace(FENCE, "")))


UNFENCED = {
    "a bulk copy over another": BULK_COPY
    + "bar.sync 0;\n"
    + BULK_COPY.replace("LOOP", "AGAIN").replace("[%r1+1024], 0;", "[%r1+1024], 1;"),
    "an asynchronous store over an ordinary one": STORE
    + "@%p0 mbarrier.arrive.expect_tx.shared.b64 _, [%r1+1024], 4;\n"
    "@%p0 st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r1], %r0, [%r1+1024];\n" + WAIT,
    "what a bulk copy brought": BULK_COPY + "ld.shared.u32 %r9, [%r1];\n" + PRODUCT + WAIT_FOR_PRODUCT,
}


@pytest.mark.parametrize("name", UNFENCED)
def test_no_proxy_fence_is_needed(name):
    run(FAIR, BARRIERS.format(count=1) + UNFENCED[name], proxy_fences=True, threads=128)


# Fences that are there, in vain: the check without clocks, for want of the barriers' numbers, takes the second.
VAIN = {
    "before the write": f"{FENCE}\n{STORE}\nbar.sync 0;\n{PRODUCT}",
    "by who came through a barrier of others": (
        f"setp.lt.u32 %p4, %r0, 64;\n@!%p4 bra WRITER;\n"
        f"mov.u32 %r9, 999;\nDELAY:\nsub.u32 %r9, %r9, 1;\nsetp.ne.u32 %p5, %r9, 0;\n@%p5 bra DELAY;\n"
        f"bar.sync 1, 64;\n{FENCE}\nbra MEET;\n"
        f"WRITER:\nst.shared.u32 [%r1], 1;\nMEET:\nbar.sync 0;\n{PRODUCT}"
    ),
    "of a copy that nobody has waited for": f"{COPY}\n{FENCE}\ncp.async.wait_all;\nbar.sync 0;\n{PRODUCT}",
    "that one reader has, who does not tell": f"{STORE}\nbar.sync 0;\n{FIRST_WARP}@%p4 {FENCE}\n{PRODUCT}",
    "of other lanes": f"{STORE}\n@%p1 {FENCE}\nbar.sync 0;\n{PRODUCT}",
}


@pytest.mark.parametrize("name", VAIN)
def test_a_proxy_fence_in_vain(name):
    with pytest.raises(RuntimeError, match="race on shared memory at dynamic offset 0: no proxy fence orders"):
        run(FAIR, VAIN[name] + WAIT_FOR_PRODUCT, proxy_fences=True, threads=128)


def test_commits_arrive_before_the_end():
    copy = ALLOCATE + "@%p0 mbarrier.init.shared.b64 [%r1+1032], 1;\n" + STORE_ROW + "fence.proxy.async;\nbar.sync 0;"
    second = TENSOR_COPY.splitlines()[-1].replace("1024", "1032")
    copy += TENSOR_COPY + second + WAIT
    run(FAIR, copy + WAIT.replace("1024", "1032").replace("LOOP", "AGAIN") + FREE, threads=128)
    with pytest.raises(
        RuntimeError, match="CTA 0 may end before a commit arrives at the mbarrier at dynamic offset 1032"
    ):
        run(FAIR, copy + FREE, threads=128)


def test_a_commit_says_nothing_of_its_threads_reads():
    read = "@%p0 ld.shared.u32 %r9, [%r1];\n"
    before = ALLOCATE.replace(", 1;", ", {count};") + STORE_ROW + "fence.proxy.async;\nbar.sync 0;" + read + TENSOR_COPY
    after = WAIT + "@%p5 st.shared.u32 [%r1], 1;\n" + FREE
    other = "setp.eq.u32 %p5, %r0, 64;\n"
    run(FAIR, other + before.format(count=2) + "@%p0 mbarrier.arrive.shared.b64 _, [%r1+1024];\n" + after, threads=128)
    with pytest.raises(
        RuntimeError, match="race on shared memory at dynamic offset 0: nothing orders\n    a read by warp 0"
    ):
        run(FAIR, other + before.format(count=1) + after, threads=128)


NONE = {
    "atomics": "atom.shared.add.u32 %r9, [%r1], 1;",
    "volatile": "st.volatile.shared.u32 [%r1], %r0;\nld.volatile.shared.u32 %r9, [%r1];",
    "the same instruction's lanes": "setp.lt.u32 %p4, %r0, 32;\n@%p4 st.shared.u32 [%r1], 1;",
    "neighbouring bytes": "add.u32 %r6, %r1, %r0;\nst.shared.u8 [%r6], %r0;\nld.shared.u8 %r7, [%r6];",
    "the same value": "st.shared.u32 [%r1], 7;",
    "reads": "ld.shared.u32 %r9, [%r1];",
    "one's own": "st.shared.u32 [%r3], %r0;\nld.shared.u32 %r9, [%r3];\nst.shared.u32 [%r3], %r9;",
}


@pytest.mark.parametrize("name", NONE)
def test_no_false_report(name):
    run(FAIR, NONE[name])


def test_lanes_that_wait_alone_order_nothing_for_the_others():
    """Lane 0 knows what it waited for; the rest of its warp once it has met it."""
    before = BARRIERS.format(count=32) + "setp.lt.u32 %p4, %r0, 32;\nsetp.eq.u32 %p5, %r0, 32;\n"
    before += (
        "@!%p4 bra CONSUMER;\nst.shared.u32 [%r3], %r0;\nmbarrier.arrive.shared.b64 _, [%r1+1024];\nret;\nCONSUMER:\n"
    )
    before += "@!%p5 bra MEET;\n" + WAIT + "MEET:\n"
    after = "ld.shared.u32 %r9, [%r4];"
    run(SKEWED, before + "bar.warp.sync -1;\n" + after)
    with pytest.raises(RuntimeError, match="race on shared memory"):
        run(SKEWED, before + after)


def test_the_report_names_both_accesses():
    with pytest.raises(RuntimeError) as error:
        run(FAIR, "st.shared.u32 [%r3], %r0;\nld.shared.u32 %r9, [%r4];")
    first, second = str(error.value).split("before")
    assert "a read by warp 0, lanes 00000001" in first and "ld.shared.u32 %r9, [%r4]\n      PTX line 27" in first
    assert "a write by warp 1, lanes 00000001" in second and "st.shared.u32 [%r3], %r0\n      PTX line 26" in second
