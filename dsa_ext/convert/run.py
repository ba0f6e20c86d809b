"""A plan carried out, and the question whether the disk has room for it."""

import shutil
from pathlib import Path

from . import stream
from .errors import ConvertError
from .plan import Plan
from .progress import Progress
from .staging import Staging, leftovers


def check_space(plan: Plan, save_path: Path) -> int:
    """The bytes that can be written to the disk of `save_path`, its leftovers counted, as the run removes them first.

    Files of the same final names don't count: they stay until the new ones are whole.

    Raises:
        ConvertError: the plan needs more.
    """
    existing = save_path.resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if save_path.is_dir():
        free += sum(path.stat().st_blocks * 512 for path in leftovers(save_path))
    if plan.nbytes > free:
        raise ConvertError(f"the disk is too full: {plan.nbytes} bytes are needed at {save_path}, and {free} are free")
    return free


def write_shards(plan: Plan, save_path: Path, progress: Progress) -> None:
    """Write the shards and copy the other files.

    Raises:
        ConvertError: an input changed or cannot be read, or an output cannot be written. No file is left behind.
    """
    buffer = bytearray(stream.CHUNK)
    with Staging(save_path) as staging:
        check_space(plan, save_path)

        def write_to(names: list[str]) -> stream.Write:
            def write(number: int, offset: int, data: bytes | memoryview) -> None:
                staging.write(names[number], offset, data)
                progress.advance(len(data))

            return write

        write = write_to([shard.name for shard in plan.shards])

        for path in plan.checkpoint.copied:
            size = path.stat().st_size
            staging.create(path.name, size)
            with stream.Reader(path, buffer) as reader:
                stream.copy(reader, 0, size, [(0, 0)], write_to([path.name]))
        for rank, shard in enumerate(plan.shards):
            staging.create(shard.name, shard.nbytes)
            write(rank, 0, shard.head)
        for path, moves in plan.moves:
            with stream.Reader(path, buffer) as reader:
                for move in moves:
                    offset, nbytes = move.source.stored.offset, move.source.stored.nbytes
                    if move.sliced:
                        stream.scatter(reader, offset, move.rows, move.row, move.targets, write)
                    else:
                        stream.copy(reader, offset, nbytes, move.targets, write)
        progress.note("waiting for the disk")
        staging.commit()
        progress.finish()
