"""The Python side of the emulator: its settings, its reports, and PTX of one's own (the emulator's tests)."""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FAIR, SKEWED, LATE = range(3)  # settings.h


@dataclass(frozen=True)
class Run:
    """How a launch is run. The checks cost little, except that of races."""

    name: str
    schedule: int = FAIR
    seed: int = 1
    proxy_fences: bool = True
    wgmma_fences: bool = True
    races: bool = False  # not with LATE; doubles the time
    late_tmem_loads: bool = False


# What every case is put through.
RUNS = (
    Run("fair", races=True),
    Run("skewed", SKEWED),
    Run("late1", LATE, 1),
    Run("late2", LATE, 2),
)


@dataclass(frozen=True)
class Site:
    """A synchronisation instruction of a kernel."""

    number: int
    kernel: str
    ptx_line: int
    source: str  # "csrc/a.cuh:12 < csrc/b.cuh:34": the innermost place first, then where it was inlined
    text: str

    @property
    def short_kernel(self) -> str:
        """Without namespaces and blanks: topk_kernel<Fp32,true>."""
        return re.sub(r"\w+::| ", "", self.kernel)


class Emulator:
    """A library with the emulator: libemulator.so, or an architecture's _C_emu.so."""

    def __init__(self, path: Path, arch: int = 90):
        self.library = lib = ctypes.CDLL(str(path))
        for name in ("emu_unknown_instructions", "emu_site", "emu_last_report"):
            getattr(lib, name).restype = ctypes.c_char_p
        lib.emu_configure.argtypes = [ctypes.c_int, ctypes.c_uint] + [ctypes.c_int] * 5 + [ctypes.c_ulonglong]
        for name in ("emu_add_memory", "emu_remove_memory"):
            getattr(lib, name).argtypes = [ctypes.c_void_p] + [ctypes.c_size_t] * (name == "emu_add_memory")
        lib.emu_set_arch(arch)

    def configure(self, run: Run, instruction_limit: int = 0, trace: bool = False) -> None:
        checks = (run.proxy_fences, run.wgmma_fences, run.races, run.late_tmem_loads)
        self.library.emu_configure(run.schedule, run.seed, *checks, trace, instruction_limit)

    def unknown_instructions(self) -> list[str]:
        return self.library.emu_unknown_instructions().decode().splitlines()

    def sites(self) -> list[Site]:
        found = []
        for number in range(self.library.emu_site_count()):
            kernel, line, source, text = self.library.emu_site(number).decode().split("\t")
            found.append(Site(number, kernel, int(line), source, text))
        return found

    @contextmanager
    def watched_sites(self) -> Iterator[set[int]]:
        """The numbers of the sites that launches reach meanwhile: complete at its end."""
        reached = set()
        self.library.emu_watch_sites()
        try:
            yield reached
        finally:
            self.remove(None)
        reached.update(n for n in range(self.library.emu_site_count()) if self.library.emu_site_reached(n))

    def remove(self, site: Site | None) -> None:
        """That instruction alone is left out of launches from now on."""
        self.library.emu_remove_site(-1 if site is None else site.number)

    def allow_race(self, first: str, second: str) -> None:
        """Accesses whose sources have these texts in them may race, the first one having come first."""
        self.library.emu_allow_race(first.encode(), second.encode())

    @property
    def multiprocessors(self) -> int:
        return self.library.emu_multiprocessors()

    def set_multiprocessors(self, count: int) -> None:
        """Of the device; 0 for as many as the real one has."""
        self.library.emu_set_multiprocessors(count)

    def executed(self) -> int:
        """Warp instructions of all launches since this was last asked."""
        return self.library.emu_take_executed()

    def run_ptx(
        self, ptx: str, *arguments: object, threads: int = 32, shared: int = 0, grid: int = 1, cluster: int = 1
    ) -> None:
        """Launches the kernel `test` of a module. Arguments are ctypes values or numpy arrays, which become addresses.
        Raises RuntimeError with the emulator's report."""
        arrays = [a for a in arguments if hasattr(a, "ctypes")]
        values = [ctypes.c_void_p(a.ctypes.data) if hasattr(a, "ctypes") else a for a in arguments]
        pointers = (ctypes.c_void_p * max(1, len(values)))(*(ctypes.addressof(v) for v in values))
        for array in arrays:
            self.library.emu_add_memory(array.ctypes.data, array.nbytes)
        try:
            failed = self.library.emu_run_ptx(ptx.encode(), grid, threads, cluster, shared, pointers)
        finally:
            for array in arrays:
                self.library.emu_remove_memory(array.ctypes.data)
        if failed:
            raise RuntimeError(self.library.emu_last_report().decode())


@cache
def emulator_alone() -> Emulator:
    from . import build

    build.build([])
    return Emulator(build.HOST_LIBRARY)
