"""The synchronisation-mutation score: how many of a kernel's barriers would be missed if they were not there.

    python -m tests.emulator.mutate [--arch sm_90a] [--sample N] [--seed S] [KERNEL-or-op ...]

Removes each synchronisation instruction of a kernel's PTX in turn (decode.cpp: `without`; one in a loop is one), runs
the kernel's cases (mutation_cases.py) through the runs of every emulated test, and prints the share that some run
reports: by a wrong result, a race, a deadlock, an instruction limit, or any other of the emulator's checks. Survivors
are listed by their lines; survivors.py says why some may survive. docs/emulator.md has more.

Exit code 1: a survivor without an explanation, or a kernel without a case.
"""

import argparse
import os
import pickle
import random
import re
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' cases and oracles

import torch  # noqa: E402

from . import session, survivors  # noqa: E402
from .control import RUNS, Emulator, Run, Site  # noqa: E402
from .mutation_cases import Call, MutationCase, all_cases  # noqa: E402

SECONDS_A_MUTANT = 120
PROCESSES = 2


@dataclass(frozen=True)
class Outcome:
    """What the runs of a mutant said. run: the one that noticed, None if none did."""

    run: str | None
    report: str = ""


@dataclass(frozen=True)
class Known:
    """A case, what it gives on the kernel as it is, and a bound of the warp instructions that it may take."""

    case: MutationCase
    call: Call
    right: Sequence[torch.Tensor]
    limit: int


class Examination:
    """Cases whose right results are known, and the mutants of the kernels that they are for."""

    def __init__(self, emulator: Emulator, cases: Iterable[MutationCase], runs: Sequence[Run] = RUNS):
        torch.set_num_threads(1)  # threads do not survive a fork
        self.emulator, self.runs = emulator, runs
        self.sites = emulator.sites()
        self.known: dict[str, list[Known]] = {}  # by Site.short_kernel
        self.reached: set[int] = set()
        for case in cases:
            names = {s.short_kernel for s in self.sites if case.kernel in s.short_kernel}
            if len(names) != 1:
                raise ValueError(f"{case.kernel} is in the names of {len(names)} kernels: {sorted(names)}")
            self.known.setdefault(names.pop(), []).append(self._learn(case))

    def _learn(self, case: MutationCase) -> Known:
        """What every run gives passes."""
        call = case.prepare()
        self.emulator.executed()
        with self.emulator.watched_sites() as reached:
            right = self._run(case, call, self.runs[0], 0)
        self.reached |= reached
        limit = 10 * self.emulator.executed() + 1_000_000
        call.verify(right)
        for run in self.runs[1:]:
            call.verify(self._run(case, call, run, 0))
        return Known(case, call, right, limit)

    def _run(self, case: MutationCase, call: Call, run: Run, limit: int) -> Sequence[torch.Tensor]:
        self.emulator.set_multiprocessors(case.multiprocessors)
        self.emulator.configure(run, limit)
        try:
            return call.run()
        finally:
            self.emulator.set_multiprocessors(0)

    def kernels(self) -> list[str]:
        """All that have synchronisation, whether or not there are cases."""
        return sorted({s.short_kernel for s in self.sites})

    def sites_of(self, kernel: str) -> list[Site]:
        return [s for s in self.sites if s.short_kernel == kernel]

    def examine(self, site: Site) -> Outcome:
        """Leaves the emulator's kernels and this process's state as the mutant left them: to be called in a fork."""
        self.emulator.remove(site)
        for run in self.runs:
            for known in self.known[site.short_kernel]:
                try:
                    results = self._run(known.case, known.call, run, known.limit)
                except RuntimeError as error:
                    return Outcome(run.name, str(error))
                if all(map(same_bytes, results, known.right)):
                    continue
                try:
                    known.call.verify(results)
                except AssertionError as error:
                    return Outcome(run.name, f"wrong result: {error}")
        return Outcome(None)

    def outcomes(self, sites: Iterable[Site]) -> Iterator[tuple[Site, Outcome]]:
        yield from in_forks(self.examine, sites)


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def in_forks(work: Callable[[Site], Outcome], sites: Iterable[Site]) -> Iterator[tuple[Site, Outcome]]:
    """work(site) in a process of its own for each, a few at a time; what dies or does not end is noticed, too."""
    waiting, running = iter(sites), {}
    with selectors.DefaultSelector() as selector:
        while True:
            while len(running) < PROCESSES and (site := next(waiting, None)) is not None:
                pid, pipe = _fork(work, site)
                running[pipe] = (pid, site, time.monotonic() + SECONDS_A_MUTANT, bytearray())
                selector.register(pipe, selectors.EVENT_READ)
            if not running:
                return
            for key, _ in selector.select(timeout=1):
                chunk = os.read(key.fd, 1 << 16)
                running[key.fd][3].extend(chunk)
                if not chunk:
                    pid, site, _, received = running.pop(key.fd)
                    _forget(selector, key.fd)
                    status = os.waitpid(pid, 0)[1]
                    if received:
                        yield site, pickle.loads(received)
                    else:
                        yield site, Outcome("crash", f"the process ended with status {status}")
            for pipe, (pid, site, deadline, _) in list(running.items()):
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    del running[pipe]
                    _forget(selector, pipe)
                    yield site, Outcome("time", f"no end within {SECONDS_A_MUTANT} s")


def _fork(work: Callable[[Site], Outcome], site: Site) -> tuple[int, int]:
    read, write = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid != 0:
        os.close(write)
        return pid, read
    status = 1
    try:
        os.close(read)
        data = pickle.dumps(work(site))
        while data:
            data = data[os.write(write, data) :]
        status = 0
    except BaseException as error:  # of this file or the oracles: the parent must not continue twice
        print(f"mutate: {site.kernel}, {site.text}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def _forget(selector: selectors.BaseSelector, pipe: int) -> None:
    selector.unregister(pipe)
    os.close(pipe)


# --- the command


def select(names: Sequence[str], cases: Iterable[MutationCase]) -> list[MutationCase]:
    """Cases of the named ops, or of kernels with such a text in their names."""
    return [c for c in cases if not names or any(n == c.op or n.replace(" ", "") in c.kernel for n in names)]


def short(report: str) -> str:
    line = next((x for x in report.splitlines() if x.strip()), "")
    return re.sub(r"^.*?emulator: ", "", line)[:110]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.emulator.mutate", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="KERNEL-or-op", help="a part of kernels' names, or an op; all")
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("--sample", type=int, metavar="N", help="so many instructions a kernel, at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--no-races", action="store_true", help="without the happens-before checker")
    parser.add_argument("--detected", action="store_true", help="list what was noticed as well, and how")
    options = parser.parse_args(arguments)

    emulator = session.start(options.arch)
    runs = [replace(run, races=False) for run in RUNS] if options.no_races else RUNS
    cases = select(options.names, all_cases(options.arch))
    if not cases:
        parser.error(f"no case for {' '.join(options.names)}")
    torch.set_grad_enabled(False)
    examination = Examination(emulator, cases, runs)
    failures = 0
    print(f"{'kernel':75} sites  detected  explained  survive")
    for kernel in examination.known:
        failures += _print_kernel(examination, kernel, options)
    if not options.names:
        for kernel in examination.kernels():
            if kernel not in examination.known:
                print(f"{kernel}: no case")
                failures += 1
    return int(failures > 0)


def _print_kernel(examination: Examination, kernel: str, options: argparse.Namespace) -> int:
    sites = examination.sites_of(kernel)
    if options.sample is not None and options.sample < len(sites):
        sites = random.Random(f"{options.seed} {kernel}").sample(sites, options.sample)
    outcomes = sorted(examination.outcomes(sites), key=lambda pair: pair[0].number)
    survived = [site for site, outcome in outcomes if outcome.run is None]
    reasons = {site: survivors.reason(site) for site in survived}
    unexplained = [site for site in survived if reasons[site] is None]
    detected, explained = len(sites) - len(survived), len(survived) - len(unexplained)
    share = 100 * detected // max(1, len(sites))
    print(f"{kernel:75} {len(sites):5} {detected:4} {share:3}%  {explained:9}  {len(unexplained):7}", flush=True)
    for site, outcome in outcomes:
        if outcome.run is None:
            reached = "" if site.number in examination.reached else " (no case reaches it)"
            why = reasons[site] or "NOT EXPLAINED"
            print(f"    survives{reached}: {site.text}\n      PTX line {site.ptx_line}, {site.source}\n      {why}")
        elif options.detected:
            print(f"    {outcome.run:7} {site.ptx_line:6} {site.text[:60]:60} {short(outcome.report)}")
    return len(unexplained)


if __name__ == "__main__":
    sys.exit(main())
