"""What stops a run: each program breaks one rule, and the report says which, where."""

import re

import numpy as np
import pytest

from .golden import emulated, tma
from .golden.matrices import Operand, copy_in, descriptor, product
from .golden.memory import wait_for
from .golden.program import Program, kernel


def stopped(emulator, body: str, shared: int = 256, threads: int = 32, arrays: int = 1) -> str:
    data = {f"array{n}": np.zeros(64, np.uint32) for n in range(arrays)}
    program = Program("broken", kernel(body, arrays, shared=shared), data, (), threads=threads, shared=shared)
    with pytest.raises(RuntimeError) as error:
        emulated.run(emulator, program)
    assert "in test, cta 0 0 0" in str(error.value) or "deadlock" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "cos.approx.f32 %v, %v",  # no family has it
        "add.sat.s32 %v, %v, %v",  # a form of one that is known
        "mul.hi.u16 %h, %h, %h",  # a type
    ],
)
def test_unknown_instruction(text, emulator):
    report = stopped(emulator, f".reg .b32 %v;\n.reg .b16 %h;\nmov.b32 %v, 0;\nmov.b16 %h, 0;\n{text};")
    assert re.search(r"does not know\s+in test, cta 0 0 0, warp 0, lanes [0f]{8}\s+at " + re.escape(text), report)


def test_text_that_is_not_understood(emulator):
    for body, report in (
        ("ld.global.b32 %thread, [%g0 + 4 + 4];", "4 + 4 is not a number"),
        ("mov.b32 %thread, %other;", "unknown register %other"),
    ):
        program = Program("broken", kernel(body, 1), {"out": np.zeros(4, np.uint32)}, ())
        with pytest.raises(RuntimeError, match=re.escape(report)):
            emulated.run(emulator, program)


def test_unknown_instruction_that_is_not_reached(emulator):
    body = ".reg .b32 %v;\n.reg .pred P;\nsetp.gt.u32 P, %thread, 99;\n@P cos.approx.f32 %v, %v;"
    program = Program("fine", kernel(body, 1), {"out": np.zeros(1, np.uint32)}, ())
    emulated.run(emulator, program)


def test_what_a_cta_leaves_in_registers_is_gone(emulator):
    """Read before a write, or where it was not for this lane or on this way, in each of three CTAs."""
    body = """
.reg .b32 %late, %by_some, %on_a_way, %cta;
.reg .b64 %at;
.reg .pred P;
mov.u32 %cta, %ctaid.x;
mad.wide.u32 %at, %cta, 12, %g0;
st.global.b32 [%at], %late;
mov.b32 %late, 1;
setp.eq.u32 P, %thread, %cta;
@P mov.b32 %by_some, 2;
setp.ne.u32 P, %cta, 0;
@P bra JOIN;
mov.b32 %on_a_way, 3;
JOIN:
setp.ne.u32 P, %thread, 0;
@P bra END;
st.global.b32 [%at + 4], %by_some;
st.global.b32 [%at + 8], %on_a_way;
END:
"""
    program = Program("registers", kernel(body, 1), {"out": np.zeros((3, 3), np.uint32)}, grid=3)
    poison = 0xCDCDCDCD
    assert emulated.run(emulator, program)["out"].tolist() == [[poison, 2, 3], [poison] * 3, [poison] * 3]


def test_bounds(emulator):
    load = ".reg .b32 %v;\nld.global.b32 %v, [%g0 + 256];"
    assert re.search(r"4 bytes, is outside every allocation.*ld\.global\.b32 %v", stopped(emulator, load))
    assert "is outside the CTA's" in stopped(emulator, ".reg .b32 %v;\nld.shared.b32 %v, [%window + 256];")
    store = "st.global.b32 [%g0 + -4], 0;"
    assert "outside every allocation" in stopped(emulator, store)


def test_deadlock(emulator):
    body = """
.reg .pred P;
setp.lt.u32 P, %thread, 32;
@P bar.sync 3, 96;
@!P bar.sync 5, 64;
"""
    report = stopped(emulator, body, threads=64)
    assert "barrier 3: 32 of 96 threads" in report and "barrier 5: 32 of 64 threads" in report
    first = "setp.eq.u32 P, %thread, 0;\n@P mbarrier.init.shared.b64 [%window], 40;\nbar.sync 0;"
    body = f".reg .pred P;\n{first}\n{wait_for(0, 0, 'ever')}"
    assert re.search(r"mbarrier at dynamic offset 0, parity 0: phase 0, 40 of 40", stopped(emulator, body))


def test_more_registers_than_a_cta_has(emulator):
    """Of 512 threads each has 128 when the CTA starts."""

    def half_and_half(less: int, more: int) -> str:
        pick = ".reg .pred P;\nsetp.lt.u32 P, %thread, 256;\n@P bra $fewer;\n"
        return f"{pick}setmaxnreg.inc.sync.aligned.u32 {more};\nret;\n$fewer:\nsetmaxnreg.dec.sync.aligned.u32 {less};"

    program = Program("even", kernel(half_and_half(120, 136), 1), {"out": np.zeros(4, np.uint32)}, (), threads=512)
    emulated.run(emulator, program)
    report = stopped(emulator, half_and_half(120, 144), threads=512)
    assert "deadlock" in report and "waits for registers: it has 128, and" in report
    assert "136 registers are not less than 128" in stopped(emulator, half_and_half(136, 136), threads=512)


def test_mbarriers_and_barriers(emulator):
    assert "not initialised" in stopped(emulator, "mbarrier.arrive.shared.b64 _, [%window];")
    twice = "mbarrier.init.shared.b64 [%window], 1;\nmbarrier.arrive.shared.b64 _, [%window], 2;"
    assert "2 arrivals where 1 are pending" in stopped(emulator, twice)
    assert "misaligned" in stopped(emulator, "mbarrier.init.shared.b64 [%window + 4], 1;")
    other = ".reg .pred P;\nsetp.lt.u32 P, %thread, 32;\n@P bar.sync 1, 64;\n@!P bar.sync 1, 96;"
    assert "elsewhere" in stopped(emulator, other, threads=64)
    for two in ("bar.sync 0;", "bar.sync 1, 64;"):
        other = f".reg .pred P;\nsetp.lt.u32 P, %thread, 32;\n@P {two}\n@!P {two}"
        assert "is an aligned one, at which some threads wait at line" in stopped(emulator, other, threads=64)


def _wgmma(fence: str, before: str) -> str:
    operand = Operand(0, 128, 256, 0)
    text = copy_in(4096).replace("fence.proxy.async.shared::cta;", fence)
    text = text.replace("ld.global.b32 %v, [%from", "mov.b32 %v, 0;//")
    setup = ".reg .pred %yes;\n.reg .b64 %a, %b;\n.reg .b32 %d<4>;\nsetp.eq.u32 %yes, %thread, %thread;"
    issue = product(8, "bf16", "%a", "%b", ["%d0", "%d1", "%d2", "%d3"], "%yes, 1, 1, 0, 0")
    return "\n".join([setup, text, descriptor("%a", operand), descriptor("%b", operand), before, issue])


def test_proxy_and_register_fences(emulator):
    numbers = "\n".join(f"mov.b32 %d{n}, 0;" for n in range(4))
    assert "proxy fence" in stopped(emulator, _wgmma("", numbers), shared=4096, threads=128)
    late = _wgmma("fence.proxy.async;", numbers).replace("wgmma.fence.sync.aligned;", "")
    assert "without a wgmma.fence" in stopped(emulator, late, shared=4096, threads=128)


def test_products_are_fenced_and_waited_for(emulator):
    numbers = "\n".join(f"mov.b32 %d{n}, 0;" for n in range(4))
    once = _wgmma("fence.proxy.async;", numbers)
    again = once[once.rindex("wgmma.fence") :]
    unfenced = once + again.replace("wgmma.fence.sync.aligned;", "")
    assert "without a wgmma.fence since" in stopped(emulator, unfenced, shared=4096, threads=128)
    unfinished = once.replace("wgmma.wait_group.sync.aligned 0;", "")
    assert "ends before it has waited for its" in stopped(emulator, unfinished, shared=4096, threads=128)
    run_both = kernel(once + again, 1, shared=4096)
    data = {"array0": np.zeros(64, np.uint32)}
    emulated.run(emulator, Program("fenced", run_both, data, (), threads=128, shared=4096))


def test_proxy_fence_of_a_reader(emulator):
    """One warp's fence serves for what all have written, if it comes after the barrier between them."""
    numbers = "\n".join(f"mov.b32 %d{n}, 0;" for n in range(4))
    fence = ".reg .pred %first;\nsetp.lt.u32 %first, %thread, 32;\n@%first fence.proxy.async.shared::cta;\n"
    assert "proxy fence" in stopped(emulator, _wgmma(fence, numbers), shared=4096, threads=128)
    behind = kernel(_wgmma("", fence + "bar.sync 0;\n" + numbers), 1, shared=4096)
    data = {"array0": np.zeros(64, np.uint32)}
    emulated.run(emulator, Program("ordered", behind, data, (), threads=128, shared=4096))


def _tma_stopped(emulator, move, start: tuple[int, int]) -> str:
    with pytest.raises(RuntimeError) as error:
        emulated.run(emulator, move("broken", tma.Box(2, 128, (64, 4), (64, 4), start)))
    return str(error.value)


def test_copies(emulator):
    copy = "cp.async.cg.shared.global [%window + 8], [%g0], 16;"
    assert "misaligned" in stopped(emulator, copy)
    bulk = """
mbarrier.init.shared.b64 [%window], 32;
.reg .b32 %s;
add.u32 %s, %window, 24;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%s], [%g0], 16, [%window];
"""
    assert "aligned to 16" in stopped(emulator, bulk)
    assert "TMA from column 60, which is not at a multiple of 16 bytes" in _tma_stopped(emulator, tma.load, (60, 0))
    assert "TMA from column -1, which" in _tma_stopped(emulator, tma.load, (-1, 0))
    assert "TMA store from coordinate -8 on" in _tma_stopped(emulator, tma.store, (-8, 0))
    assert "TMA store from coordinate -1 on" in _tma_stopped(emulator, tma.store, (0, -1))
    trap = stopped(emulator, "trap;")
    assert "the kernel stopped itself" in trap and "at trap" in trap
