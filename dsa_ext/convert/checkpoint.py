"""What is in the input folder: its configuration, its tensors by their headers, and the `*token*` files.

Only headers are read here, except where two files hold a tensor of the same name: those are compared.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from . import names
from .errors import ConvertError
from .headers import Stored, read_header
from .stream import same_bytes

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Config:
    """What the conversion needs of config.json; `experts` and `block` are None where it does not say."""

    layers: int
    experts: int | None
    block: tuple[int, int] | None  # rows and columns of a weight that share a scale


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor to convert."""

    path: Path
    stored: Stored
    target: names.Target

    @property
    def label(self) -> str:
        return f"{self.stored.name} in {self.path.name}"


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    config: Config
    files: list[Path]
    sources: list[Source]  # by file, then by the place in the file: the order in which they are read
    skipped: int  # tensors of the layers that config.json does not count
    repeated: int  # tensors that a second file holds once more, with the same bytes
    copied: list[Path]  # files that are copied as they are


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read what there is to convert.

    Raises:
        ConvertError: the folder is no whole checkpoint of known tensors.
        OSError: something in it cannot be read.
    """
    if not folder.is_dir():
        raise ConvertError(f"{folder} is not a folder")
    config = _read_config(folder / "config.json")
    # Dotfiles are nobody's weights: what other systems and killed runs leave behind.
    files = sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("."))
    if not files:
        raise ConvertError(f"{folder} holds no *.safetensors file")
    stored = {path: read_header(path) for path in files}
    _check_index(folder, stored, config.layers)

    sources: dict[str, Source] = {}
    skipped = repeated = 0
    for path, tensors in stored.items():
        for tensor in tensors:
            if (names.layer(tensor.name) or 0) >= config.layers:
                skipped += 1
                continue
            target = names.target(tensor.name)
            if target is None:
                raise ConvertError(f"unknown tensor {tensor.name} in {path}")
            source = Source(path, tensor, target)
            if (first := sources.setdefault(target.name, source)) is not source:
                _check_repetition(first, source)
                repeated += 1
    copied = sorted(p for p in folder.glob("*token*") if p.is_file() and not p.name.startswith("."))
    copied = [p for p in copied if p not in stored]
    return Checkpoint(folder, config, files, list(sources.values()), skipped, repeated, copied)


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ConvertError(f"{path} holds no JSON object")
    return value


def _read_config(path: Path) -> Config:
    if not path.is_file():
        raise ConvertError(f"{path} is missing: its num_hidden_layers tells which layers belong to the model")
    config = _read_json(path)
    layers, experts = config.get("num_hidden_layers"), config.get("n_routed_experts")
    if type(layers) is not int or layers < 1:
        raise ConvertError(f"{path} has num_hidden_layers {layers!r}, expected a number of layers")
    if experts is not None and (type(experts) is not int or experts < 0):
        raise ConvertError(f"{path} has n_routed_experts {experts!r}, expected a number of experts")
    quantization = config.get("quantization_config")
    block = quantization.get("weight_block_size") if isinstance(quantization, dict) else None
    if block is not None:
        if not isinstance(block, list) or len(block) != 2 or any(type(n) is not int or n < 1 for n in block):
            raise ConvertError(f"{path} has weight_block_size {block!r}, expected two sizes")
        block = (block[0], block[1])
    return Config(layers, experts, block)


def _check_index(folder: Path, stored: dict[Path, list[Stored]], layers: int) -> None:
    """A download that stopped half way shows in the index alone."""
    path = folder / INDEX
    if not path.is_file():
        if len(stored) > 1:
            raise ConvertError(f"{path} is missing, and {len(stored)} *.safetensors files need one")
        return
    places = _read_json(path).get("weight_map")
    if not isinstance(places, dict):
        raise ConvertError(f"{path} has no weight_map")
    held = {file.name: {t.name for t in tensors} for file, tensors in stored.items()}
    for tensor, file in places.items():
        if (names.layer(tensor) or 0) >= layers:
            continue
        if not isinstance(file, str) or file not in held:
            raise ConvertError(f"{folder} lacks the file {file}, where {INDEX} has {tensor}")
        if tensor not in held[file]:
            raise ConvertError(f"{folder / file} lacks the tensor {tensor}, which {INDEX} has there")


def _check_repetition(first: Source, second: Source) -> None:
    a, b = first.stored, second.stored
    for what, x, y in (("dtype", a.dtype, b.dtype), ("shape", list(a.shape), list(b.shape))):
        if x != y:
            raise ConvertError(f"{first.label} has {what} {x}, and {second.label} has {y}")
    if not same_bytes((first.path, a.offset), (second.path, b.offset), a.nbytes):
        raise ConvertError(f"{first.label} and {second.label} hold different values")
