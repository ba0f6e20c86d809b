"""Weights from the files that `dsa-convert` writes: one a rank, read a tensor at a time."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from .decoder import Decoder
from .decoder_config import DecoderConfig
from .linear import dequantise_blocks
from .parallel import ranks

_SHARD = re.compile(r"model(\d+)-mp(\d+)\.safetensors")


class LoadError(ValueError):
    """The files do not hold the model that was asked for."""


def read_config(path: Path) -> dict:
    """A config.json.

    Raises:
        LoadError: it is missing, or no JSON object.
    """
    try:
        config = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise LoadError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise LoadError(f"{path} holds no JSON object")
    return config


def load_decoder(folder: Path, config: DecoderConfig, *, group=None, device=None, dtype=None) -> Decoder:
    """The decoder with the rank's weights. Block-scaled fp8 weights are multiplied by their scales and rounded to
    dtype. In memory: the decoder, and one tensor of the file.

    Args:
        folder: of `dsa-convert`, made for as many ranks as group has.
        group, device, dtype: as Decoder takes them.

    Raises:
        LoadError: no file for this rank or for this number of ranks, a damaged one, a tensor that the decoder does not
            know, one that it misses, or one of another shape.
        ValueError: something in config does not divide by the ranks.
    """
    rank = 0 if group is None else torch.distributed.get_rank(group)
    path = _shard(Path(folder), rank, ranks(group))
    with torch.device("meta"):
        decoder = Decoder(config, group=group, dtype=dtype)
    held = decoder.to_empty(device=device or "cpu").requires_grad_(False)
    _fill(held.state_dict(), path)
    return held.eval()


def _shard(folder: Path, rank: int, count: int) -> Path:
    """The rank's file."""
    if not folder.is_dir():
        raise LoadError(f"{folder} is not a folder")
    matches = [match for path in folder.iterdir() if (match := _SHARD.fullmatch(path.name))]
    found = {int(match[2]) for match in matches}
    if count not in found:
        if not found:
            raise LoadError(f"{folder} holds no model*-mp*.safetensors, as dsa-convert writes them")
        made = " and ".join(map(str, sorted(found)))
        raise LoadError(f"{folder} was converted with --model-parallel {made}, and the number of ranks is {count}")
    there = {int(match[1]) for match in matches if int(match[2]) == count}
    # Every rank looks for all of them, so that no rank waits for one that cannot come.
    if missing := sorted(set(range(count)) - there):
        raise LoadError(f"{folder} lacks model{missing[0]}-mp{count}.safetensors, the shard of rank {missing[0]}")
    return folder / f"model{rank}-mp{count}.safetensors"


def _fill(held: dict[str, Tensor], path: Path) -> None:
    """Copies the file's tensors into those of the decoder. All names and shapes are compared first."""
    with _opened(path) as file:
        names = set(file.keys())
        scales = {name for name in names if name.endswith(".scale")}
        if unknown := sorted(names - scales - held.keys()):
            raise LoadError(f"{path.name} has {_first(unknown)}, which the configuration's model has not")
        if missing := sorted(held.keys() - names):
            raise LoadError(f"{path.name} lacks {_first(missing)} of the configuration's model")
        if orphans := sorted(s for s in scales if s.removesuffix("scale") + "weight" not in names):
            raise LoadError(f"{path.name} has {_first(orphans)} without the weight")
        for name, target in held.items():
            shape = tuple(file.get_slice(name).get_shape())
            if shape != tuple(target.shape):
                raise LoadError(
                    f"{path.name} has {name} of shape {shape}, expected {tuple(target.shape)} by the configuration"
                )
        for name, target in held.items():
            scale = name.removesuffix("weight") + "scale"
            value = file.get_tensor(name).to(target.device)
            if (scale in scales) != (value.dtype.itemsize == 1):
                has = "a scale" if scale in scales else "no scale"
                raise LoadError(f"{path.name} has {name} in {value.dtype} with {has}: an fp8 weight has one, no other")
            if scale in scales:
                try:
                    value = dequantise_blocks(value, file.get_tensor(scale).to(target.device))
                except ValueError as error:
                    raise LoadError(f"{path.name}, {name}: {error}") from error
            target.copy_(value)


@contextmanager
def _opened(path: Path) -> Iterator:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise LoadError("loading weights needs safetensors: pip install safetensors") from error
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{path} cannot be read: {error}") from error


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
    return f"the tensor {names[0]}{more}"
