"""The whole conversion, decided from headers before a tensor is read: what each shard holds and where.

A plan exists only for a checkpoint that converts; everything that does not fit is refused here.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from . import names
from .checkpoint import Checkpoint, Source
from .errors import ConvertError, UsageError
from .headers import ITEM_BYTES, lay_out


@dataclass(frozen=True, slots=True)
class Move:
    """A tensor's way. Its bytes are `rows` rows of `row` bytes; if `sliced`, each target gets an equal part of every
    row, else all of it. `targets` are (rank, offset in the rank's file)."""

    source: Source
    sliced: bool
    rows: int
    row: int
    targets: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Shard:
    name: str
    head: bytes  # header length and header
    tensors: int
    nbytes: int  # of the file


@dataclass(frozen=True)
class Plan:
    checkpoint: Checkpoint
    ranks: int
    shards: list[Shard]
    moves: list[tuple[Path, list[Move]]]  # by input file, each in the order of its bytes

    @property
    def nbytes(self) -> int:
        """Bytes that will be written."""
        return sum(s.nbytes for s in self.shards) + sum(p.stat().st_size for p in self.checkpoint.copied)


def check_numbers(experts: int, ranks: int) -> None:
    """Refuse what no checkpoint could make right."""
    if ranks < 1:
        raise UsageError(f"--model-parallel is {ranks}, expected at least 1")
    if experts < 0:
        raise UsageError(f"--n-experts is {experts}, expected at least 0")
    if experts % ranks:
        raise UsageError(f"--n-experts {experts} is not divisible by --model-parallel {ranks}")


def make_plan(checkpoint: Checkpoint, experts: int, ranks: int) -> Plan:
    """Lay out the shards of all ranks.

    Raises:
        ConvertError: an argument, a size, a scale or the set of experts does not fit.
    """
    check_numbers(experts, ranks)
    _check_experts(checkpoint, experts)
    _check_scales(checkpoint, ranks)
    held: list[list[tuple[str, str, tuple[int, ...]]]] = [[] for _ in range(ranks)]
    for source in checkpoint.sources:
        entry = (source.target.name, source.stored.dtype, part_shape(source, ranks))
        for rank in _ranks_of(source, experts, ranks):
            held[rank].append(entry)
    shards, offsets = [], []
    for rank, tensors in enumerate(held):
        head, places, nbytes = lay_out(tensors)
        shards.append(Shard(f"model{rank}-mp{ranks}.safetensors", head, len(tensors), nbytes))
        offsets.append(places)
    moves: dict[Path, list[Move]] = {path: [] for path in checkpoint.files}
    for source in checkpoint.sources:
        name, dim, shape = source.target.name, source.target.dim, source.stored.shape
        targets = tuple((rank, offsets[rank][name]) for rank in _ranks_of(source, experts, ranks))
        sliced = dim is not None and ranks > 1
        rows = math.prod(shape[:dim]) if sliced else 1
        row = math.prod(shape[dim:] if sliced else shape) * ITEM_BYTES[source.stored.dtype]
        moves[source.path].append(Move(source, sliced, rows, row, targets))
    return Plan(checkpoint, ranks, shards, list(moves.items()))


def part_shape(source: Source, ranks: int) -> tuple[int, ...]:
    """The shape that a rank holds."""
    dim, shape = source.target.dim, source.stored.shape
    if dim is None or ranks == 1:
        return shape
    if dim >= len(shape):
        raise ConvertError(f"{source.label} has shape {list(shape)}, and dim {dim} is sliced over the ranks")
    if shape[dim] % ranks:
        raise ConvertError(
            f"{source.label} has shape {list(shape)}, and dim {dim} is not divisible by --model-parallel {ranks}"
        )
    return (*shape[:dim], shape[dim] // ranks, *shape[dim + 1 :])


def _ranks_of(source: Source, experts: int, ranks: int) -> range:
    if source.target.expert is None:
        return range(ranks)
    owner = source.target.expert // (experts // ranks)
    return range(owner, owner + 1)


def _check_experts(checkpoint: Checkpoint, experts: int) -> None:
    stated = checkpoint.config.experts
    if stated is not None and stated != experts:
        raise ConvertError(f"--n-experts is {experts}, and config.json has n_routed_experts {stated}")
    found: dict[str, set[int]] = defaultdict(set)  # by layer and projection: each must exist for every expert
    for source in checkpoint.sources:
        if source.target.expert is not None:
            found[names.without_expert(source.stored.name)].add(source.target.expert)
    for module, numbers in sorted(found.items()):
        if beyond := sorted(n for n in numbers if n >= experts):
            raise ConvertError(f"--n-experts is {experts}, and the checkpoint has {module} of expert {beyond[-1]}")
        if missing := sorted(set(range(experts)) - numbers):
            raise ConvertError(f"--n-experts is {experts}, and the checkpoint lacks {module} of expert {missing[0]}")
    if experts and not found:
        raise ConvertError(f"--n-experts is {experts}, and the checkpoint has no routed experts")


def _check_scales(checkpoint: Checkpoint, ranks: int) -> None:
    """A rank's slice of a scale must cover its slice of the weight, block for block."""
    by_target = {source.target.name: source for source in checkpoint.sources}
    for source in checkpoint.sources:
        name = source.target.name
        if name.endswith(".scale"):
            weight = by_target.get(name.removesuffix("scale") + "weight")
            if weight is None:
                raise ConvertError(f"{source.label} is the scale of a weight that is missing")
            _check_scale(source, weight, checkpoint.config.block, ranks)
        elif source.stored.dtype.startswith("F8_") and name.removesuffix("weight") + "scale" not in by_target:
            raise ConvertError(f"{source.label} is {source.stored.dtype}, and its weight_scale_inv is missing")


def _check_scale(scale: Source, weight: Source, block: tuple[int, int] | None, ranks: int) -> None:
    have, of = scale.stored.shape, weight.stored.shape
    if block is not None:
        expected = [-(-n // b) for n, b in zip(of, block, strict=False)]
        if len(of) != 2 or list(have) != expected:
            raise ConvertError(
                f"{scale.label} has shape {list(have)}, and its weight of shape {list(of)} has {expected} blocks of "
                f"{block[0]} x {block[1]}"
            )
    dim = scale.target.dim
    if dim is None or ranks == 1:
        return
    part_shape(weight, ranks)  # the weight's own message first
    if len(have) != len(of):
        raise ConvertError(f"{scale.label} has shape {list(have)}, and its weight, sliced along dim {dim}, {list(of)}")
    # Where config.json does not tell the block, it is what divides the weight evenly.
    size = block[dim] if block else of[dim] // max(have[dim], 1)
    if have[dim] % ranks or have[dim] * size != of[dim]:
        raise ConvertError(
            f"{scale.label} has shape {list(have)}, and its dim {dim} does not divide by --model-parallel {ranks} "
            f"along with the {of[dim]} of its weight"
        )
