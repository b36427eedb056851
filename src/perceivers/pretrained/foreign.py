"""Weights in the files of other PyTorch libraries: plain tensors come in, everything else is refused."""

import pickletools
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from perceivers.files import one_line
from perceivers.pretrained.unpickle import LONGEST_AXIS, LONGEST_KEY, MOST_OPCODES
from perceivers.storage import WEIGHTS, load_tensors, read_json

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
"""The dtypes that a tensor may have, by the names of their storages."""

CHECKPOINT_NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {name}Storage" for name in NUMBERS),
}
"""What the pickle within a checkpoint may name: less than torch.load allows."""

CHECKPOINT_FILES = re.compile(
    r"[^/]+/(data\.pkl|data/\d+|version|byteorder|\.data/serialization_id|\.format_version|\.storage_alignment)"
)
"""What the archive of a checkpoint may hold: no code, no constants."""


def read_torch(path: Path) -> dict[str, Tensor]:
    """Weights of a Hugging Face folder, or of one file of it, on the CPU; ValueError if it holds anything but tensors.

    A folder holds safetensors, whole or in shards, or else a checkpoint that torch.save wrote. The tensors may be views
    of the file: they are to be copied, not kept.
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


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path}: not a file")
    try:
        found = load_tensors(path) if path.suffix == ".safetensors" else _load_checkpoint(path)
        return _checked(found, path.stat().st_size)
    except Exception as error:  # of every kind: what other parsers make of hostile files is not for us to foresee
        reason = one_line(str(error).removeprefix(f"{path}: "))
        raise ValueError(f"{path}: {reason or type(error).__name__}") from None


def _load_checkpoint(path: Path) -> object:
    _check_checkpoint(path)
    try:
        # Not mapped into memory: then torch.load would not compare the sizes of tensors with those of their parts.
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Without the advice, before and after, to load it all the same.
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
        raise ValueError(f"torch.load refuses it: {reason}") from None


def _read_shards(folder: Path) -> dict[str, Tensor]:
    index = read_json(_inside(folder, INDEX))
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{folder / INDEX}: weight_map is not a table of the tensors' files")
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        found = _read_file(_inside(folder, shard))
        wrong = found.keys() ^ {name for name, place in places.items() if place == shard}
        if wrong:
            name = one_line(min(wrong))
            raise ValueError(f"{folder / INDEX}: {name} is not where it should be; {one_line(shard)} was searched")
        weights |= found
    return weights


def _inside(folder: Path, name: str) -> Path:
    # In a cache of the hub, files are links into its folder of blobs.
    if not re.fullmatch(r"\w[\w.-]*\.(safetensors|json|bin)", name, re.ASCII):
        raise ValueError(f"{folder / INDEX}: {one_line(name)!r} is not the name of a file in this folder")
    home = folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    try:
        target = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError):  # the second for links in a circle
        raise ValueError(f"{folder / name} is missing") from None
    if target.parent not in homes or not target.is_file():
        raise ValueError(f"{folder / name}: not a file, or a link out of its folder")
    return folder / name


def _check_checkpoint(path: Path) -> None:
    """ValueError unless the file is an archive of whole, uncompressed parts whose pickle names only plain tensors."""
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
        _check_program(archive.read(f"{names[0].split('/')[0]}/data.pkl"))


def _check_program(program: bytes) -> None:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
        if count > MOST_OPCODES:
            raise ValueError(f"more than {MOST_OPCODES} opcodes: not a checkpoint of tensors")
        if opcode.name == "PROTO" and argument != 2:
            raise ValueError(f"a pickle of protocol {argument}, torch.save writes 2")
        if opcode.name == "GLOBAL" and argument not in CHECKPOINT_NAMES:
            name = str(argument).replace(" ", ".")
            raise ValueError(f"names {name}, which has no place in a checkpoint of tensors; refused")


def _checked(found: object, size: int) -> dict[str, Tensor]:
    """The same mapping, its tensors without their past; ValueError for one that is not plain, or is too large."""
    left = 2 * size  # tied tensors are there twice
    if not isinstance(found, dict):
        raise ValueError(f"holds a {type(found).__name__}, not a mapping of names to tensors")
    checked: dict[str, Tensor] = {}
    for name, value in dict.items(found):
        if not (isinstance(name, str) and len(name) <= LONGEST_KEY and name.isascii() and name.isprintable()):
            raise ValueError("a key is not the name of a tensor")
        if type(value) not in (Tensor, nn.Parameter):
            raise ValueError(f"{name} is a {type(value).__name__}, not a tensor")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_neg():
            raise ValueError(f"{name} is not a dense tensor")
        if value.dtype not in NUMBERS.values():
            raise ValueError(f"{name} has dtype {value.dtype}, not one of plain numbers")
        if max(value.shape, default=0) >= LONGEST_AXIS:  # beside an axis of size 0
            raise ValueError(f"{name} is too long")
        left -= value.numel() * value.element_size()
        if left < 0:
            raise ValueError(f"{name} holds more than the file does")
        checked[name] = value.detach()
    return checked
