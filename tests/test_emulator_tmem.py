"""The emulator's model of tensor memory, on PTX of its own: what is allowed gives the right values, what is not stops.
(What order it asks for: tests/emulator/test_tmem_races.py.)

Runs where the emulator does: pytest --emulate=sm_100a.
"""

import numpy as np
import pytest

HEADER = """
.version 8.7
.target sm_100a
.address_size 64
.visible .entry test(.param .u64 result) {
.reg .pred %p<4>;
.reg .b32 %r<20>;
.reg .b64 %rd<4>;
.shared .align 8 .b8 place[8];
ld.param.u64 %rd1, [result];
mov.u32 %r0, %tid.x;
mul.wide.u32 %rd2, %r0, 4;
add.s64 %rd1, %rd1, %rd2;
setp.lt.u32 %p0, %r0, 32;
mov.b32 %r1, place;
"""
ALLOCATE = """
@%p0 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1], 32;
bar.sync 0;
tcgen05.fence::after_thread_sync;
ld.shared.b32 %r2, [%r1];
"""
STORE = """
tcgen05.st.sync.aligned.32x32b.x2.b32 [%r2], {%r0, %r3};
tcgen05.wait::st.sync.aligned;
"""
LOAD = "tcgen05.ld.sync.aligned.32x32b.x2.b32 {%r4, %r5}, [%r2];\n"
WAIT = "tcgen05.wait::ld.sync.aligned;\n"
RESULT = "st.global.b32 [%rd1], %r4;\n"
FREE = """
tcgen05.fence::before_thread_sync;
bar.sync 0;
@%p0 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r2, 32;
ret; }
"""


@pytest.fixture
def run(request, device):
    """Runs a kernel of 128 threads, and returns a number of each."""
    emulator = request.config.emulator
    if emulator is None:
        pytest.skip("there is no emulator in this session: pytest --emulate=sm_100a")

    def run(body: str) -> np.ndarray:
        result = np.zeros(128, np.uint32)
        emulator.run_ptx(HEADER + body, result, threads=128)
        return result

    return run


def test_what_is_stored_is_loaded(run):
    stored = run(ALLOCATE + "mov.b32 %r3, 7;\n" + STORE + LOAD + WAIT + RESULT + FREE)
    assert np.array_equal(stored, np.arange(128))


def test_what_is_not_stored_is_nan(run):
    assert np.isnan(run(ALLOCATE + LOAD + WAIT + RESULT + FREE).view(np.float32)).all()


def test_a_second_allocation_holds_nothing(run):
    again = FREE.replace("ret; }", "") + ALLOCATE
    body = ALLOCATE + "mov.b32 %r3, 7;\n" + STORE + again + LOAD + WAIT + RESULT + FREE
    assert np.isnan(run(body).view(np.float32)).all()


@pytest.mark.parametrize(
    "body, report",
    [
        (ALLOCATE + "ret; }", "32 columns of tensor memory are not freed"),
        (ALLOCATE + "add.u32 %r2, %r2, 31;\n" + LOAD + WAIT + FREE, "column 32 is outside of the 32 columns"),
        (ALLOCATE + LOAD + RESULT + WAIT + FREE, "not loaded yet: no tcgen05.wait::ld"),
        (ALLOCATE + LOAD + "mov.b32 %r6, %r5;\nadd.u32 %r6, %r6, 1;\n" + WAIT + FREE, "not loaded yet"),
        (LOAD.replace("%r2", "0") + WAIT + "ret; }", "outside of the 0 columns"),
    ],
    ids=["not freed", "not allocated", "no wait", "no wait before a copy's use", "never allocated"],
)
def test_stops(body, report, run):
    with pytest.raises(RuntimeError, match=report):
        run(body)


def test_registers_may_move_before_the_wait(run):
    moved = "mov.b32 %r7, %r4;\n" + WAIT + "st.global.b32 [%rd1], %r7;\n"
    assert np.array_equal(run(ALLOCATE + "mov.b32 %r3, 7;\n" + STORE + LOAD + moved + FREE), np.arange(128))
