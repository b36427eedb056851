"""Weights from the files of other PyTorch libraries: plain tensors are loaded, everything else is refused."""

import argparse
import pickletools
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perceivers.files.budgets import MOST_DEPTH, read_json
from perceivers.files.messages import one_line
from perceivers.files.opening import regular_file
from perceivers.files.tensor_files import load_tensors
from perceivers.pretrained.model_folder import WEIGHTS
from perceivers.pretrained.unpickle import LONGEST_AXIS, LONGEST_KEY, MOST_AXES, MOST_OPCODES

INDEX, CHECKPOINT = "model.safetensors.index.json", "pytorch_model.bin"

NUMBERS = {
    "Bool": torch.bool,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "Short": torch.int16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Float": torch.float32,
    "Double": torch.float64,
}
"""Dtypes that a tensor may have, by the names of their storages."""

CHECKPOINT_NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {name}Storage" for name in NUMBERS),
}
"""Globals that the pickle within a checkpoint may name: fewer than torch.load allows."""

CHECKPOINT_FILES = re.compile(
    r"[^/]+/(data\.pkl|data/\d+|version|byteorder|\.data/serialization_id|\.format_version|\.storage_alignment)"
)
"""Files that the archive of a checkpoint may hold: no code, no constants."""

FILLING = ("REDUCE", "BUILD", "SETITEM", "SETITEMS", "APPEND", "APPENDS", "NEWOBJ")
"""Opcodes that put values into the value below them on the stack."""

CONTAINERS = ("EMPTY_", "TUPLE", *FILLING)
"""Opcodes whose value holds other values."""


TRAINING_NAMES = CHECKPOINT_NAMES | {"argparse Namespace"}
"""Globals that the pickle of a training checkpoint may name: a namespace holds the arguments of a script."""

STATES = ("state_dict", "model")
"""Names under which training checkpoints have the weights."""

VOCABULARY = ".vocab"
"""End of the name of a table of names to numbers beside the weights (torch_brain)."""

PAIRS = ("TUPLE1", "TUPLE2", "TUPLE3")
"""Opcodes of short tuples, which may be used twice if they hold no containers: betas of an optimiser."""


def read_torch(path: Path) -> dict[str, Tensor]:
    """Load the weights of a Hugging Face folder, or of one of its files, on the CPU; ValueError unless all are tensors.

    A folder holds safetensors, in one file or in shards, or else a checkpoint of torch.save. The tensors may be views
    of the file: copy them, do not keep them.
    """
    if not path.is_dir():
        return _read_file(path)
    if (path / WEIGHTS).exists():
        return _read_file(_inside(path, WEIGHTS))
    if (path / INDEX).exists():
        return _read_shards(path)
    if (path / CHECKPOINT).exists():
        return _read_file(_inside(path, CHECKPOINT))
    raise ValueError(f"{path}: no weights here; there should be {WEIGHTS}, {INDEX} or {CHECKPOINT}")


def read_state(path: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Load weights as `read_torch` does, or those of a training checkpoint, under "state_dict" or "model".

    Return names to tensors (and to vocabularies, tables of names to numbers), and the checkpoint's other values, which
    are numbers, texts, tensors and namespaces in lists and dictionaries.
    """
    if path.is_dir() or path.suffix == ".safetensors":
        return dict(read_torch(path)), {}
    regular_file(path)
    with _one_line_errors(path):
        loaded, around, vocabularies = _load_checkpoint(path, TRAINING_NAMES), dict[str, Any](), dict[str, Any]()
        if isinstance(loaded, dict) and (inner := [name for name in STATES if isinstance(loaded.get(name), dict)]):
            around = {name: value for name, value in dict.items(loaded) if name != inner[0]}
            loaded = loaded[inner[0]]
        if isinstance(loaded, dict):
            vocabularies = {name: value for name, value in dict.items(loaded) if _is_vocabulary(name, value)}
            loaded = {name: value for name, value in dict.items(loaded) if name not in vocabularies}
        return {**_checked(loaded, path.stat().st_size), **vocabularies}, around


def _is_vocabulary(name: Any, value: Any) -> bool:
    """Return whether an entry of a state dict is a table of names to numbers."""
    if not (isinstance(name, str) and name.endswith(VOCABULARY) and isinstance(value, dict)):
        return False
    return all(type(word) is str and type(number) is int for word, number in dict.items(value))


def _read_file(path: Path) -> dict[str, Tensor]:
    regular_file(path)
    with _one_line_errors(path):
        weights = load_tensors(path) if path.suffix == ".safetensors" else _load_checkpoint(path)
        return _checked(weights, path.stat().st_size)


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Turn any error into a ValueError that names the file."""
    try:
        yield
    except Exception as error:  # of any type: hostile files may raise anything in other parsers
        reason = one_line(str(error).removeprefix(f"{path}: "))
        raise ValueError(f"{path}: {reason or type(error).__name__}") from None


def _load_checkpoint(path: Path, names: Collection[str] = CHECKPOINT_NAMES) -> object:
    _check_checkpoint(path, names)
    known: list[Any] = [argparse.Namespace] if names is TRAINING_NAMES else []
    try:
        # No mmap: with it, torch.load would not compare the sizes of tensors with those of their files.
        with torch.serialization.safe_globals(known):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Strip torch's advice to load the file without weights_only.
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
        raise ValueError(f"torch.load refuses it: {reason}") from None


def _read_shards(folder: Path) -> dict[str, Tensor]:
    index = read_json(_inside(folder, INDEX))
    file_of = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(file_of, dict) or not file_of or not all(isinstance(name, str) for name in file_of.values()):
        raise ValueError(f"{folder / INDEX}: weight_map is not a table of the tensors' files")
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(file_of.values())):
        tensors = _read_file(_inside(folder, shard))
        wrong = tensors.keys() ^ {name for name, file in file_of.items() if file == shard}
        if wrong:
            name = one_line(min(wrong))
            raise ValueError(f"{folder / INDEX}: {name} is not where it should be; {one_line(shard)} was searched")
        weights |= tensors
    return weights


def _inside(folder: Path, name: str) -> Path:
    # In the hub's cache, files are links into its folder of blobs.
    if not re.fullmatch(r"\w[\w.-]*\.(safetensors|json|bin)", name, re.ASCII):
        raise ValueError(f"{folder / INDEX}: {one_line(name)!r} is not the name of a file in this folder")
    home = folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    try:
        target = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        raise ValueError(f"{folder / name} is missing") from None
    if target.parent not in homes or not target.is_file():
        raise ValueError(f"{folder / name}: not a file, or a link out of its folder")
    return folder / name


def _check_checkpoint(path: Path, allowed: Collection[str]) -> None:
    """Raise a ValueError unless the file is an archive of stored parts whose pickle names only plain tensors."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        names = [part.filename for part in parts]
        for part in parts:
            if not CHECKPOINT_FILES.fullmatch(part.filename):
                raise ValueError(f"holds {part.filename}, which has no place in a checkpoint of tensors; refused")
            if part.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{part.filename} is compressed, torch.save leaves its parts as they are")
        if len(set(names)) < len(names) or len({name.split("/")[0] for name in names}) != 1:
            raise ValueError("an archive with two parts of one name, or of two folders")
        if min(part.header_offset for part in parts) or sum(part.file_size for part in parts) > path.stat().st_size:
            raise ValueError("an archive whose parts overlap, or that begins with something else")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} is not what was written: damaged or changed")
        _check_program(archive.read(f"{names[0].split('/')[0]}/data.pkl"), allowed)


def _check_program(program: bytes, allowed: Collection[str]) -> None:
    values = _Values()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
        if count > MOST_OPCODES:
            raise ValueError(f"more than {MOST_OPCODES} opcodes: not a checkpoint of tensors")
        if opcode.name == "PROTO" and argument != 2:
            raise ValueError(f"a pickle of protocol {argument}, torch.save writes 2")
        if opcode.name == "GLOBAL" and argument not in allowed:
            name = str(argument).replace(" ", ".")
            raise ValueError(f"names {name}, which has no place in a checkpoint of tensors; refused")
        values.follow(opcode, argument)


class _Value(NamedTuple):
    """A value of a pickle, as far as it is known without unpickling."""

    height: int = 0
    """Depth of nested containers."""
    single: bool = False
    """True for a container, which may be used only once."""
    name: str = ""
    """Name of a global; "" for other values."""


class _Values:
    """The stack of a pickle without its values, to check that it describes a tree, and not a deep one.

    A container used twice in another one, and so on, has 2 ** 30 paths in 500 bytes: hashing it would never end.
    """

    def __init__(self) -> None:
        self.stack: list[_Value | None] = []  # None: a mark
        self.memo: dict[Any, _Value | None] = {}

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Apply an opcode to the stack; ValueError for a container that is used twice or nested too deep."""
        if opcode.name.endswith("BINGET"):
            value = self.memo.get(argument)
            if value is None or value.single:
                raise ValueError(f"damaged: value {argument} is not there, or lies in two places")
            self.stack.append(value)
        elif opcode.name.endswith("BINPUT"):
            self.memo[argument] = self.stack[-1] if self.stack else None
        else:
            made = self._made(opcode, self._taken(opcode), argument)
            if made.height > MOST_DEPTH:
                raise ValueError(f"values in one another more than {MOST_DEPTH} deep")
            self.stack += [None if after is pickletools.markobject else made for after in opcode.stack_after]

    def _taken(self, opcode: pickletools.OpcodeInfo) -> list[_Value]:
        needed, taken = opcode.stack_before, list[_Value | None]()
        try:
            if pickletools.markobject in needed:
                while (value := self.stack.pop()) is not None:
                    taken.append(value)
                needed = needed[: needed.index(pickletools.markobject)]
            for _ in needed:
                taken.insert(0, self.stack.pop())
        except IndexError:
            raise ValueError("damaged: its stack is empty") from None
        return [value for value in taken if value is not None]

    def _made(self, opcode: pickletools.OpcodeInfo, taken: list[_Value], argument: Any) -> _Value:
        if opcode.name == "GLOBAL":
            return _Value(name=argument)
        inside = taken[1:] if opcode.name in FILLING else taken
        height = max([*(value.height + 1 for value in inside), *(value.height for value in taken)], default=0)
        tensor = opcode.name == "REDUCE" and bool(taken) and taken[0].name.startswith("torch._utils ")
        flat = opcode.name in PAIRS and height == 1
        return _Value(height, opcode.name.startswith(CONTAINERS) and not tensor and not flat)


def _checked(weights: object, size: int) -> dict[str, Tensor]:
    """Return the weights, detached; ValueError for a value that is not a plain tensor, or holds more than the file."""
    left = 2 * size  # bytes; tied tensors are counted twice
    if not isinstance(weights, dict):
        raise ValueError(f"holds a {type(weights).__name__}, not a mapping of names to tensors")
    checked: dict[str, Tensor] = {}
    for name, value in dict.items(weights):
        if not (isinstance(name, str) and len(name) <= LONGEST_KEY and name.isascii() and name.isprintable()):
            raise ValueError("a key is not the name of a tensor")
        if type(value) not in (Tensor, nn.Parameter):
            raise ValueError(f"{name} is a {type(value).__name__}, not a tensor")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_neg():
            raise ValueError(f"{name} is not a dense tensor")
        if value.dtype not in NUMBERS.values():
            raise ValueError(f"{name} has dtype {value.dtype}, not one of plain numbers")
        if max(value.shape, default=0) >= LONGEST_AXIS or value.ndim > MOST_AXES:  # an axis of 0 may hide a long one
            raise ValueError(f"{name} is too long, or has too many axes")
        left -= value.numel() * value.element_size()
        if left < 0:
            raise ValueError(f"{name} holds more than the file does")
        checked[name] = value.detach()
    return checked
