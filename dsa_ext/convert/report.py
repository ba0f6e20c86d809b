"""The plan in words, for `--dry-run`."""

from collections import Counter

from . import names
from .plan import Plan, part_shape
from .progress import size


def describe(plan: Plan) -> list[str]:
    """Lines: what is read, every kind of tensor with its new name, slice and count, the shards, the copied files."""
    checkpoint, ranks = plan.checkpoint, plan.ranks
    nbytes = sum(source.stored.nbytes for source in checkpoint.sources)
    lines = [f"input: {checkpoint.folder}"]
    lines += [f"  {path.name}  {len(moves)} tensors" for path, moves in plan.moves]
    lines.append(f"  {len(checkpoint.sources)} tensors of {size(nbytes)} are converted")
    if checkpoint.skipped:
        lines.append(f"  {checkpoint.skipped} of layers from {checkpoint.config.layers} on are skipped")
    if checkpoint.repeated:
        lines.append(f"  {checkpoint.repeated} are repetitions in a second file")
    lines += ["", "tensors (* is any layer or expert):", *_tensors(plan)]
    lines += ["", f"output, {ranks} {'rank' if ranks == 1 else 'ranks'}:"]
    lines += [f"  {shard.name}  {shard.tensors} tensors  {shard.nbytes} bytes" for shard in plan.shards]
    for path in checkpoint.copied:
        lines.append(f"  {path.name}  copied  {path.stat().st_size} bytes")
    return lines


def _tensors(plan: Plan) -> list[str]:
    kinds: Counter[tuple[str, ...]] = Counter()
    for source in plan.checkpoint.sources:
        stored, target = source.stored, source.target
        shape, part = list(stored.shape), list(part_shape(source, plan.ranks))
        where = "each rank" if target.dim is None else f"dim {target.dim}"
        where = "one rank" if target.expert is not None else where
        shapes = f"{shape} -> {part}" if part != shape else f"{shape}"
        kinds[names.pattern(stored.name), names.pattern(target.name), stored.dtype, shapes, where] += 1
    if not kinds:
        return ["  none"]
    widths = [max(len(kind[i]) for kind in kinds) for i in range(5)]
    lines = []
    for kind, count in sorted(kinds.items()):
        old, new, dtype, shapes, where = (text.ljust(width) for text, width in zip(kind, widths, strict=True))
        lines.append(f"  {old} -> {new}  {dtype}  {shapes}  {where}  x {count}")
    return lines
