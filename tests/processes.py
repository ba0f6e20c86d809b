"""Processes that tests start: forked from one that has imported torch, which takes seconds, and done nothing else.
This package they import themselves, from where the tests have it."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

multiprocessing.set_forkserver_preload(["torch", "torch.distributed", "pytest"])


def run_ranks(function: Callable, ranks: int, *arguments: Any) -> None:
    """function(rank, *arguments) in a process for each rank. Raises what one of them raises."""
    torch.multiprocessing.start_processes(function, arguments, nprocs=ranks, start_method="forkserver")


def run_alone(function: Callable, *arguments: Any) -> int:
    """The exit status of a process that calls function(*arguments): minus the signal that ended it, if one did."""
    process = multiprocessing.get_context("forkserver").Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode
