"""The processes that torchrun started, and what they tell each other outside the model."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import distributed

Result = TypeVar("Result")
EXPECTED = (ValueError, OSError)  # what is wrong with a user's input; anything else is a fault, and ends the process


@contextmanager
def process_group() -> Iterator[tuple[object, torch.device]]:
    """The group that torchrun's environment variables describe, None for a single process, and this rank's device."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    gpu = torch.cuda.is_available()
    if gpu and local >= torch.cuda.device_count():
        raise ValueError(f"rank {local} of this machine has no GPU: there are {torch.cuda.device_count()}")
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield None, device
        return
    # Objects travel between the CPUs.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    try:
        yield distributed.group.WORLD, device
    finally:
        distributed.destroy_process_group()


def is_first(group) -> bool:
    return group is None or distributed.get_rank(group) == 0


def on_all(action: Callable[[], Result], group) -> Result:
    """action() on every rank. An expected error on one is raised on all: none waits for a rank that has given up."""
    result, problem = _try(action)
    if group is not None:
        problems: list = [None] * distributed.get_world_size(group)
        distributed.all_gather_object(problems, problem, group=group)
        problem = next((p for p in problems if p is not None), None)
    return _result(result, problem)


def on_first(action: Callable[[], Result], group) -> Result:
    """action() on rank 0; every rank gets its result or its expected error."""
    outcome = _try(action) if is_first(group) else (None, None)
    if group is not None:
        sent = [outcome]
        distributed.broadcast_object_list(sent, src=0, group=group)
        outcome = sent[0]
    return _result(*outcome)


def _try(action: Callable[[], Result]) -> tuple[Result | None, str | None]:
    try:
        return action(), None
    except EXPECTED as error:
        return None, str(error)


def _result(result: Result | None, problem: str | None) -> Result:
    if problem is not None:
        raise ValueError(problem)
    return result
