"""A pytest session on the emulator (pytest --emulate=sm_90a): the ops' CPU implementations become the kernels."""

import functools
import re

import torch

from dsa_ext import _registration_decode, _registration_logits

from . import allowed_races, build, control


class EmulatedDevice(str):
    """The device to make tensors on, "cpu", for tests that ask `device == "cpu"` to learn what will run: it equals no
    other name."""

    def __new__(cls):
        return super().__new__(cls, "cpu")

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = str.__hash__


def start(arch: str) -> control.Emulator:
    """Builds and loads the extension for an architecture such as sm_90a. From here on tensors come from the emulator's
    allocator, and results are held to what a GPU's are."""
    name = arch.removeprefix("sm_")
    build.build([name])
    torch.set_num_threads(1)  # the sessions beside this one have the other cores; threads would wait for each other
    if not build.library(name).exists() or not build.units(name):
        raise ValueError(f"there are no kernels for {arch}")
    torch.ops.load_library(build.library(name))
    emulator = control.Emulator(build.library(name), int(re.match(r"\d+", name)[0]))
    if unknown := emulator.unknown_instructions():
        raise ValueError("the kernels have instructions that the emulator does not know:\n" + "\n".join(unknown))
    emulator.library.emu_use_allocator()
    emulator.configure(control.RUNS[0])
    for race in allowed_races.ALLOWED:
        emulator.allow_race(race.one, race.other)
        emulator.allow_race(race.other, race.one)
    _judge_as_kernels()
    _plan_as_kernels(emulator)
    return emulator


def _judge_as_kernels() -> None:
    """The oracles tell kernels by where their results are."""
    import decode_oracle
    import oracle

    def rounding_weights(verify):
        @functools.wraps(verify)
        def verify_kernel(results, inputs, queries=None, bf16_weights=None):
            return verify(results, inputs, queries, True if bf16_weights is None else bf16_weights)

        return verify_kernel

    for module in (oracle, decode_oracle):
        module.verify = rounding_weights(module.verify)
    oracle.same = oracle.same_bits


def _plan_as_kernels(emulator: control.Emulator) -> None:
    """The reference on the CPU needs no plan; kernels do."""

    def plan_size(device: torch.device, *arguments: int) -> int:
        return torch.ops.dsa_ext.plan_sparse_mla_decode_size(emulator.multiprocessors, *arguments)

    def logits_plan_size(device: torch.device) -> int:
        return torch.ops.dsa_ext.plan_paged_indexer_logits_size(emulator.multiprocessors)

    _registration_decode._plan_size = plan_size
    _registration_logits._plan_size = logits_plan_size
