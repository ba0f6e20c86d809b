"""The command line of `dsa-convert`."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from . import names
from .checkpoint import Checkpoint, open_checkpoint
from .errors import ConvertError, UsageError
from .plan import check_numbers, make_plan
from .progress import Progress, size
from .report import describe
from .run import check_space, write_shards

_INTERRUPTED = 130  # the shell's own status after Ctrl-C
_DESCRIPTION = """Convert a Hugging Face checkpoint of a DeepSeek Sparse Attention model (DeepSeek-V3.2, GLM-5) to one
safetensors file a rank, model{i}-mp{m}.safetensors, with this package's names."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dsa-convert", description=_DESCRIPTION)
    parser.add_argument("--hf-ckpt-path", type=Path, required=True, help="folder of the checkpoint to read")
    parser.add_argument("--save-path", type=Path, required=True, help="folder to write to; made if it does not exist")
    parser.add_argument("--n-experts", type=int, required=True, help="routed experts a layer, 0 for a model without")
    parser.add_argument("--model-parallel", type=int, required=True, help="ranks to shard for")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, write nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status: 0, 1 for what cannot be converted, 2 for a wrong command line."""
    arguments = _parser().parse_args(argv)
    try:
        before = signal.signal(signal.SIGTERM, _stop)
    except ValueError:  # not in the main thread: whoever called handles signals
        before = None
    try:
        _convert(arguments)
        return 0
    except ConvertError as error:
        return _fail(str(error), error.status)
    except BrokenPipeError:  # a reader of the plan that had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _fail(message: str, status: int) -> int:
    print(f"dsa-convert: error: {message}", file=sys.stderr)
    return status


def _convert(arguments: argparse.Namespace) -> None:
    source, target, ranks = arguments.hf_ckpt_path, arguments.save_path, arguments.model_parallel
    check_numbers(arguments.n_experts, ranks)
    if source.exists() and target.exists() and source.samefile(target):
        raise UsageError(f"--save-path is --hf-ckpt-path, {source}, expected another folder")
    if target.exists() and not target.is_dir():
        raise UsageError(f"--save-path {target} is not a folder")
    checkpoint = open_checkpoint(source)
    plan = make_plan(checkpoint, arguments.n_experts, ranks)
    _warn_of_missing_layers(checkpoint)
    if arguments.dry_run:
        print("\n".join(describe(plan)), flush=True)
        free = check_space(plan, target)
        print(f"\n{size(plan.nbytes)} to write to {target}, {size(free)} free; nothing was written")
        return
    check_space(plan, target)  # also before a folder is made
    progress = Progress(plan.nbytes)
    try:
        write_shards(plan, target, progress)
    finally:
        progress.finish()
    print(f"{len(plan.shards)} shards and {len(checkpoint.copied)} copied files of {size(plan.nbytes)} in {target}")


def _warn_of_missing_layers(checkpoint: Checkpoint) -> None:
    """Not an error: a part of a model can be wanted. A download that stopped half way is refused by its index."""
    found = {names.layer(source.target.name) for source in checkpoint.sources}
    missing = checkpoint.config.layers - len(found - {None})
    if missing:
        first = next(i for i in range(checkpoint.config.layers) if i not in found)
        print(f"dsa-convert: warning: {missing} layers have no tensor, the first is {first}", file=sys.stderr)
