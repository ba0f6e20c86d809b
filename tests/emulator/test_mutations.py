"""With --emulate alone: a synchronisation instruction that a kernel needs, and that is taken out, is reported."""

import pytest

from tests.emulator import survivors
from tests.emulator.control import RUNS
from tests.emulator.mutation_cases import all_cases

BARRIERS = (
    "bar.sync",
    "barrier.cluster.arrive",
    "mbarrier.try_wait",
    "mbarrier.arrive",
    "cp.async.mbarrier.arrive",
    "cp.async.wait_all",
    "griddepcontrol.wait",
    "tcgen05.fence::before_thread_sync",
    "tcgen05.fence::after_thread_sync",
    "tcgen05.wait::ld",
    "tcgen05.wait::st",
    "tcgen05.commit",
)


def one_of_each_kind(sites):
    """A fixed handful: of every kind the first that the cases reach and that is not known to survive."""
    kinds = {}
    for site in sites:
        opcode = next(word for word in site.text.split() if not word.startswith("@"))
        kind = next((b for b in BARRIERS if opcode.startswith(b)), None)
        if kind is not None and survivors.reason(site) is None:
            kinds.setdefault(kind, site)
    return list(kinds.values())


def pytest_generate_tests(metafunc):
    cases = all_cases(metafunc.config.getoption("--emulate") or "sm_90a")
    metafunc.parametrize("kernel", list(dict.fromkeys(case.kernel for case in cases)))


# (All four runs of the mutants: the command's affair. Here a late one follows for what the first does not notice.)
@pytest.mark.parametrize("device", [RUNS[0]], indirect=True, ids=lambda run: run.name)
def test_removed_synchronisation_is_reported(kernel, device, request):
    from tests.emulator.mutate import Examination

    arch = request.config.getoption("--emulate")
    cases = [case for case in all_cases(arch) if case.kernel == kernel]
    examination = Examination(request.config.emulator, cases, (RUNS[0], RUNS[2]))
    (name,) = examination.known
    sites = one_of_each_kind(s for s in examination.sites_of(name) if s.number in examination.reached)
    assert sites or kernel == "combine_chunks"  # whose only one is griddepcontrol.wait
    unnoticed = [site for site, outcome in examination.outcomes(sites) if outcome.run is None]
    assert unnoticed == []
