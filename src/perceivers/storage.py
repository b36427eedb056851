"""Model folders and durable files: what is there is whole, what is being written is not there yet."""

import ctypes
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from perceivers.core.config import Config
from perceivers.core.perceiver import PerceiverIO
from perceivers.modalities.kind import named
from perceivers.preset import Preset
from perceivers.schema import Schema, from_plain, to_plain

FORMAT = 1
"""Number of the format of model folders that this version writes."""

WEIGHTS, DESCRIPTION, MANIFEST = "model.safetensors", "model.json", "manifest.json"

UNFINISHED = ".unfinished"
"""End of the hidden names of what is being written or removed."""


Content = TypeVar("Content")


def naming_its_target(write: Callable[[Path, Content], None]) -> Callable[[Path, Content], None]:
    """Return `write`, whose errors of the file system name the target, not what it is called until it is whole."""

    @wraps(write)
    def named_write(target: Path, content: Content) -> None:
        try:
            write(target, content)
        except OSError as error:
            if error.strerror is not None:
                error.filename, error.filename2 = str(target), None
            raise

    return named_write


@naming_its_target
def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder, then put it in place: whole and on disk, or not there. An older one is replaced."""
    make_folder(target.parent)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=UNFINISHED, dir=target.parent))
    try:
        write(fresh)
        files = sorted(fresh.iterdir())
        for path in files:
            _finish_file(path)
        (fresh / MANIFEST).write_text(json.dumps({path.name: _fingerprint(path) for path in files}, indent=2) + "\n")
        _finish_file(fresh / MANIFEST)
        fresh.chmod(0o755)
        to_disk(fresh)
        if target.exists():
            _exchange(fresh, target)  # from here on `fresh` is the old one
        else:
            fresh.rename(target)
        to_disk(target.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@naming_its_target
def write_text(target: Path, text: str) -> None:
    """Write a text file, whole and on disk, or leave the old one."""
    make_folder(target.parent)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=UNFINISHED, dir=target.parent)
    fresh = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        _finish_file(fresh)
        fresh.rename(target)
        to_disk(target.parent)
    finally:
        fresh.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder at once: one that is half removed is not found under its name."""
    doomed = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=UNFINISHED, dir=folder.parent))
    folder.rename(doomed)
    shutil.rmtree(doomed)


def sweep(folder: Path) -> None:
    """Remove what a killed writer left in a folder that nobody else writes to: unfinished files of ours, no others."""
    for path in folder.glob(f".*{UNFINISHED}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, on disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        to_disk(path.parent)


def check_folder(folder: Path) -> None:
    """ValueError unless every file that the manifest names is there as it was written."""
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict):
        raise ValueError(f"{folder / MANIFEST}: not a list of files")
    for name, fingerprint in manifest.items():
        if Path(name).name != name:
            raise ValueError(f"{folder / MANIFEST}: {name!r} is no name of a file beside it")
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing")
        if _fingerprint(folder / name) != fingerprint:
            raise ValueError(f"{folder / name} is not what was written: damaged or changed")


def save_model(model: PerceiverIO, folder: Path) -> None:
    """Write weights, schema and config as files into an existing folder."""
    save_description(model, folder)
    save_tensors(folder / WEIGHTS, model.state_dict())


def save_description(model: PerceiverIO, folder: Path) -> None:
    """Write schema and config as a file into an existing folder."""
    description = {
        "format": FORMAT,
        "perceivers": version("perceivers"),
        "schema": to_plain(model.schema),
        "config": to_plain(model.config),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def load_model(folder: Path) -> PerceiverIO:
    """The model of a folder, in evaluation mode; ValueError naming what is wrong with it."""
    description = read_json(folder / DESCRIPTION)
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        found = description.get("format") if isinstance(description, dict) else None
        raise ValueError(f"{folder / DESCRIPTION}: format {found!r}, this version reads {FORMAT}")
    source = str(folder / DESCRIPTION)
    schema = from_plain(Schema, description.get("schema"), source)
    config = from_plain(Config, description.get("config"), source)
    # Shapes alone: what the file says must not take memory before it has been checked.
    model = named(source, Preset(schema, config).build, "meta")
    load_weights(model, load_shards(folder / WEIGHTS), str(folder / WEIGHTS), assign=True)
    return model.eval()


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str, assign: bool = False) -> None:
    """Put weights into a model; ValueError naming the first that is missing, left over or of another shape.

    They are copied into the model's own tensors, or `assign`ed in their place, for a model that has shapes alone.
    """
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in weights:
            raise ValueError(f"{source}: {name} is missing")
        if weights[name].shape != tensor.shape:
            raise ValueError(f"{source}: {name} is {list(weights[name].shape)}, the model's is {list(tensor.shape)}")
    if extra := sorted(set(weights) - set(own)):
        raise ValueError(f"{source}: {extra[0]} is not in the model")
    # Copies lie where torch puts tensors: products of numbers that lie otherwise in memory differ in the last bit.
    model.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, assign=assign)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    try:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: cannot be written: {error}") from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU; ValueError if it is none."""
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: {error}") from None


def shard_name(path: Path, number: int, total: int) -> Path:
    """The file of one of `total` shards (from 0) of a file of tensors."""
    return path.with_name(f"{path.stem}-{number + 1:05d}-of-{total:05d}{path.suffix}")


def load_shards(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, or of the shards in its place: pieces along the first axis; ValueError if one is missing."""
    first = next(iter(sorted(path.parent.glob(f"{path.stem}-00001-of-*{path.suffix}"))), None)
    if path.exists() or first is None:
        return load_tensors(path)
    total = int(first.stem.rpartition("-")[2])
    shards = [load_tensors(shard_name(path, number, total)) for number in range(total)]
    pieces = {name: [shard[name] for shard in shards if name in shard] for name in shards[0]}
    return {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in pieces.items()}


def read_json(path: Path) -> Any:
    """Content of a JSON file; ValueError naming the file if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def _fingerprint(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _finish_file(path: Path) -> None:
    path.chmod(0o644)  # temporary files belong to their maker alone
    to_disk(path)


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders at once, so that there is one under each name at any time (Linux); elsewhere nearly so."""
    at_working_folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    names = os.fsencode(one), os.fsencode(other)
    if rename is None or rename(at_working_folder, names[0], at_working_folder, names[1], exchange):
        aside = one.with_name(f"{one.name}{UNFINISHED}")
        other.rename(aside)
        one.rename(other)
        aside.rename(one)
