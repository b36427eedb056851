"""Files of tensors (safetensors), each one file or several shards."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from perceivers.files.messages import one_line
from perceivers.files.opening import UnreadableError, tensor_file


def check_finite(folder: Path) -> None:
    """Raise a ValueError naming the first tensor in a folder's files that contains NaN or an infinity."""
    for path in sorted(folder.glob("*.safetensors")):
        with _library_errors(path), safetensors.safe_open(tensor_file(path), "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if not is_finite([file.get_tensor(name)]):
                    raise ValueError(f"{path}: {name} is not finite")


def is_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether no tensor contains NaN or an infinity; of a sharded tensor, the local part is checked."""
    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    return all(bool(tensor.isfinite().all()) for tensor in local)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file."""
    try:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: cannot be written: {one_line(error)}") from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load the tensors of a safetensors file, on the CPU; ValueError for other files."""
    with _library_errors(path):
        return load_file(tensor_file(path))


@contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    """Turn errors of safetensors into errors that name the file: UnreadableError if unreadable, else ValueError."""
    try:
        yield
    except FileNotFoundError:  # raised by the library for any error of the system
        raise UnreadableError(f"{path}: cannot be read") from None
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror or one_line(error)}") from None
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: {one_line(error)}") from None


def shard_name(path: Path, number: int, total: int) -> Path:
    """Return the path of shard `number` (from 0) of `total` shards of a file of tensors."""
    return path.with_name(f"{path.stem}-{number + 1:05d}-of-{total:05d}{path.suffix}")


def load_shards(path: Path) -> dict[str, Tensor]:
    """Load a file, or the shards in its place, which are pieces along the first axis; ValueError if one is missing."""
    # The name of the first shard has the number of shards; without a first shard, the file is a single one.
    first = next(iter(sorted(path.parent.glob(f"{path.stem}-00001-of-*[0-9]{path.suffix}"))), None)
    total = first.stem.rpartition("-")[2] if first else ""
    if path.exists() or not re.fullmatch("[0-9]+", total):
        return load_tensors(path)
    pieces: dict[str, list[Tensor]] = {}
    for number in range(max(int(total), 1)):
        for name, piece in load_tensors(shard_name(path, number, int(total))).items():
            pieces.setdefault(name, []).append(piece)
    try:
        return {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in pieces.items()}
    except RuntimeError as error:
        raise ValueError(f"{path}: its shards do not fit together: {one_line(error)}") from None
