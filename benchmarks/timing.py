"""How calls on a GPU are timed.

In turns. A GPU under this load lowers its clock as it heats up and nears its power limit, so what is timed first would
win. Ours and the peer therefore alternate within every round, the order turned round after each, and share whatever
state the GPU is in. The result is the median over the rounds.

Several calls a measurement. A pair of CUDA events encloses as many calls as take about ten milliseconds, so that their
resolution and the gap between two launches do not count. One call that is not timed goes ahead of them: the queue then
holds work when the first event is reached, and Python's time to launch stays hidden behind it; and each function finds
the caches as it left them, not as the other did.

No flush of the L2 cache. A prefill row streams at least 150 MB of queries, indices and outputs through a cache of 50 MB
a call, and reads each key thousands of times: keys that survive from the call before save a few microseconds at most.
Decoding reads little, and there a model's other layers have evicted the keys: decode.py takes different keys in every
call of a CUDA graph instead.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

MEASUREMENT_MS = 10.0
MAX_CALLS = 50  # a measurement
WARMUP_SECONDS = 0.15
MIN_ROUNDS, MAX_ROUNDS = 5, 100

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    ms: float  # one call: the median over the rounds
    quartiles: tuple[float, float]
    rounds: int


def in_turns(calls: dict[str, Call], seconds: float = 1.0) -> dict[str, Timing]:
    """Times every call for about `seconds` altogether, warm-up and the least number of rounds aside."""
    names = list(calls)
    start = time.perf_counter()
    while time.perf_counter() - start < WARMUP_SECONDS:
        for name in names:
            calls[name]()
        torch.cuda.synchronize()
    count = {name: _calls_a_measurement(calls[name]) for name in names}

    samples: dict[str, list[float]] = {name: [] for name in names}
    start, rounds = time.perf_counter(), 0
    while rounds < MIN_ROUNDS or (rounds < MAX_ROUNDS and time.perf_counter() - start < seconds):
        events = {name: _measure(calls[name], count[name]) for name in names}
        torch.cuda.synchronize()
        for name, (first, last) in events.items():
            samples[name].append(first.elapsed_time(last) / count[name])
        names.reverse()
        rounds += 1
    return {name: _summary(values) for name, values in samples.items()}


def _measure(call: Call, count: int) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    call()
    first.record()
    for _ in range(count):
        call()
    last.record()
    return first, last


def _calls_a_measurement(call: Call) -> int:
    first, last = _measure(call, 2)
    torch.cuda.synchronize()
    one = max(1e-3, first.elapsed_time(last) / 2)
    return max(1, min(MAX_CALLS, math.ceil(MEASUREMENT_MS / one)))


def _summary(values: list[float]) -> Timing:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(middle, (low, high), len(values))


def matmul_tflops(size: int = 8192, kind: str = "bf16") -> float:
    """What a matrix product of bf16, or of fp8 (e4m3) elements, reaches on this GPU in this run: the yardstick for the
    kernels that multiply such."""
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    if kind == "bf16":
        call = lambda: a @ b  # noqa: E731
    else:
        x, y, one = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).T, torch.ones((), device="cuda")
        call = lambda: torch._scaled_mm(x, y, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)  # noqa: E731
    return 2 * size**3 / in_turns({"matmul": call})["matmul"].ms / 1e9


def copy_tb_s(size: int = 2**30) -> float:
    """What a copy within this GPU's memory reaches in this run, read and written bytes together: the other
    yardstick."""
    source = torch.empty(size, device="cuda", dtype=torch.uint8).fill_(1)
    target = torch.empty_like(source)
    return 2 * size / in_turns({"copy": lambda: target.copy_(source)}, seconds=0.3)["copy"].ms / 1e9


def graph(calls: list[Call]) -> Call:
    """One CUDA graph of all the calls; returns its replay. Leaves launch overheads out, as servers do in decoding."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        for call in calls:
            call()

    def replay() -> None:
        captured.replay()

    replay.calls = calls  # what they read must live as long as the graph
    return replay


def once(calls: list[Call]) -> float:
    """Milliseconds of all the calls, one after the other, each once: for what takes long enough for that."""
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    for call in calls:
        call()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last)


def on_cpu(call: Call, rounds: int = 3) -> Timing:
    call()
    values = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        values.append((time.perf_counter() - start) * 1e3)
    return _summary(values)
