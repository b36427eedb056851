"""Model folders and durable files: what is there is whole, what is being written is not there yet."""

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from perceivers.budgets import from_json
from perceivers.core.config import Config, shared
from perceivers.core.perceiver import PerceiverIO
from perceivers.files import UnreadableError, one_line, read_text, tensor_file
from perceivers.modalities.kind import named
from perceivers.preset import Preset
from perceivers.schema import Schema, checked, from_plain, to_plain

FORMAT = 1
"""Number of the format of model folders that this version writes."""

WEIGHTS, DESCRIPTION, MANIFEST = "model.safetensors", "model.json", "manifest.json"

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Types of numbers that weights may have: a model may be stored in any of them, and is then run in it."""

STATE = "state.json"
"""File that a checkpoint has beside those of a model."""

READY = ".manifest.ready"
"""Hidden folder within a folder: the files of a save that is being put in place. They count, not the older ones."""

UNFINISHED = ".unfinished"
"""End of the hidden names of what is being written or removed."""

LEFTOVER = re.compile(r"\..*\.[a-z0-9_]{8}\.unfinished")
"""Pattern of these hidden names, as `tempfile` makes them."""

UNWRAP = "merge adapters (merge_and_unload), remove pruning and parametrisations, unwrap .module, before it is saved"

IN_THE_WAY = "was not saved here by us, or changed since: move it, or save elsewhere"

Manifest = dict[str, dict[str, int | str]]
"""Size and hash of files by name."""


Content = TypeVar("Content")


def naming_its_target(write: Callable[[Path, Content], None]) -> Callable[[Path, Content], None]:
    """Return `write`, whose errors of the file system name the target, not what it is called until it is whole."""

    @wraps(write)
    def named_write(target: Path, content: Content) -> None:
        try:
            write(target, content)
        except OSError as error:
            if error.strerror is None:
                raise
            raise OSError(error.errno, error.strerror, str(target)) from None

    return named_write


@naming_its_target
def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder, then put its files in place: all of them and on disk, or none.

    A folder that exists keeps what is not ours. Only the files that its manifest names are replaced or removed, and
    only as they were written; ValueError naming any other file that has the name of a new one.
    """
    target = Path(os.path.realpath(target))
    if target.name == READY or LEFTOVER.fullmatch(target.name):
        raise ValueError(f"{target}: a name that only unfinished saves have: choose another")
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target}: is a file, not a folder")
    if target.is_dir():
        with locked(target, exclusive=True):
            _finish_earlier_save(target)
            with _filled(target, "model", write) as fresh:
                _check_replaceable(target, read_manifest(fresh))
                fresh.rename(target / READY)  # from here on the new files count
                to_disk(target)
                _put_in_place(target)
    else:
        make_folder(target.parent)
        with _filled(target.parent, target.name, write) as fresh:
            _rename_durably(fresh, target)


@contextmanager
def locked(folder: Path, exclusive: bool) -> Iterator[None]:
    """Within: no other process or thread saves a model in a folder; if `exclusive`, none loads one from it either."""
    with ExitStack() as stack:
        with suppress(ImportError, OSError):  # where there are no locks, or no folder yet
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)  # a forked process may have the descriptor too
        yield


def _rename_durably(fresh: Path, target: Path) -> None:
    """Give a folder its name, on disk, or leave it the old one."""
    fresh.rename(target)
    try:
        to_disk(target.parent)
    except OSError:
        target.rename(fresh)  # a loss of power could take the name back: nothing was saved
        raise


def current(folder: Path) -> Path:
    """Return where a folder's files are: in it, or within it where a save was cut off while they were put in place."""
    ready = folder / READY
    return ready if not ready.is_symlink() and (ready / MANIFEST).is_file() else folder


@naming_its_target
def write_text(target: Path, text: str) -> None:
    """Write a text file, whole and on disk, or leave the old one; ValueError for what is no file.

    What a link leads to is replaced, not the link.
    """
    target = Path(os.path.realpath(target))
    if target.exists() and not target.is_file():
        raise ValueError(f"{target}: not a file, and nothing that a file may replace")
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
    """Remove a folder that `write_folder` made, at once: one that is half removed is not found under its name.

    A folder in which there is something else is not removed but renamed: NAME.kept.xxxxxxxx.
    """
    if not _holds_only_ours(folder):
        folder.rename(tempfile.mkdtemp(prefix=f"{folder.name}.kept.", dir=folder.parent))
        return
    doomed = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=UNFINISHED, dir=folder.parent))
    folder.rename(doomed)
    shutil.rmtree(doomed)


def sweep(folder: Path) -> None:
    """Remove what a killed writer left in a folder that nobody else writes to: unfinished files of ours, no others."""
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, on disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path}: is a file, not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        to_disk(path.parent)


def check_folder(folder: Path) -> None:
    """ValueError unless every file that the manifest names is there as it was written."""
    folder = current(folder)
    for name, fingerprint in read_manifest(folder).items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing")
        if _fingerprint(folder / name) != fingerprint:
            raise ValueError(f"{folder / name} is not what was written: damaged or changed")


def check_finite(folder: Path) -> None:
    """ValueError naming the first tensor of a folder's files that holds NaN or an infinite number."""
    for path in sorted(folder.glob("*.safetensors")):
        with _library_errors(path), safetensors.safe_open(tensor_file(path), "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                if not is_finite([file.get_tensor(name)]):
                    raise ValueError(f"{path}: {name} is not finite")


def is_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether no tensor (of a sharded one the part that is here) holds NaN or an infinite number."""
    here = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    return all(bool(tensor.isfinite().all()) for tensor in here)


def read_manifest(folder: Path) -> Manifest:
    """Return size and hash by name of the files that `write_folder` made; ValueError if it made no such manifest."""
    path = folder / MANIFEST
    found = read_json(path)
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path}: not a list of files")
    for name, fingerprint in found.items():
        if Path(name).name != name:
            raise ValueError(f"{path}: {name!r} is no name of a file beside it")
        if not isinstance(fingerprint, dict) or fingerprint.keys() != {"size", "sha256"}:
            raise ValueError(f"{path}: has no size and hash of {name!r}")
    return found


def savable(model: object) -> PerceiverIO:
    """Return a model that loads as it is, of a compiled one the model within; ValueError naming what would not.

    Its arrays must be those that its schema and config build, plain, finite and each its own.
    """
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, PerceiverIO):
        raise ValueError(f"model is a {type(model).__name__}, not a PerceiverIO: {UNWRAP}")
    own, places = model.state_dict(), dict[int, str]()
    built = named("model", Preset(cast(Schema, model.schema), model.config).build, "meta").state_dict()
    for name in (*own, *built):
        if name not in built:
            raise ValueError(f"model: {name} is none of the arrays that its schema and config build: {UNWRAP}")
        if name not in own:
            raise ValueError(f"model: {name} is missing, which its schema and config build: {UNWRAP}")
        _check_array(name, own[name], built[name])
        if own[name].numel() and (other := places.setdefault(own[name].data_ptr(), name)) != name:
            raise ValueError(f"model: {name} and {other} are one tensor, which would load as two: clone one of them")
    return model


def _check_array(name: str, array: Tensor, built: Tensor) -> None:
    """ValueError unless an array can be saved, and loaded where the model builds one."""
    if type(array) is not Tensor or array.layout != torch.strided:
        raise ValueError(f"model: {name} is a {type(array).__name__}, not a plain tensor: {UNWRAP}")
    if array.is_meta:
        raise ValueError(f"model: {name} is on the device meta, where it has no numbers: load or build it elsewhere")
    if array.shape != built.shape:
        raise ValueError(f"model: {name} is {list(array.shape)}, its schema and config build {list(built.shape)}")
    if array.dtype != built.dtype and not (array.dtype in FLOATS and built.dtype in FLOATS):
        raise ValueError(f"model: {name} is of {array.dtype}, its schema and config build {built.dtype}")
    if not is_finite([array]):
        raise ValueError(f"model: {name} is not finite: it holds NaN or an infinite number")


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
    folder = current(folder)
    description = read_json(folder / DESCRIPTION)
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        found = description.get("format") if isinstance(description, dict) else None
        raise ValueError(f"{folder / DESCRIPTION}: format {found!r}, this version reads {FORMAT}")
    source = str(folder / DESCRIPTION)
    schema = from_plain(Schema, description.get("schema"), source)
    config = from_plain(Config, description.get("config"), source)
    weights = load_shards(folder / WEIGHTS)
    blocks = num_attention_blocks(config)
    if blocks > len(weights):
        raise ValueError(f"{source}: {blocks} attention blocks, but {WEIGHTS} has {len(weights)} arrays in all")
    # Shapes alone: what the file says must not take memory before it has been checked.
    model = named(source, Preset(schema, config).build, "meta")
    load_weights(model, weights, str(folder / WEIGHTS), assign=True)
    return model.eval()


def num_attention_blocks(config: Config) -> int:
    """Return the number of attention blocks with weights of their own, apart from the decoder's."""
    encoder, processor = config.encoder, config.processor
    reads = 0 if config.trunk == "transformer" else 1 + shared(encoder.num_reads - 1, encoder.share_reads)
    return reads + processor.num_layers * (1 + shared(processor.num_blocks - 1, processor.share_blocks))


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str, assign: bool = False) -> None:
    """Put weights into a model; ValueError naming the first that is missing, left over or of another shape.

    They are copied into the model's own tensors, or `assign`ed in their place, for a model that has shapes alone.
    """
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in weights:
            raise ValueError(f"{source}: {name} is missing")
        found = weights[name].dtype
        if found != tensor.dtype and not (found in FLOATS and tensor.dtype in FLOATS):
            raise ValueError(f"{source}: {name} is of {found}, the model's of {tensor.dtype}")
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
        raise ValueError(f"{path}: cannot be written: {one_line(error)}") from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU; ValueError if it is none."""
    with _library_errors(path):
        return load_file(tensor_file(path))


@contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    """Turn errors of the library into ours, with the file: UnreadableError if it cannot be read, else ValueError."""
    try:
        yield
    except FileNotFoundError:  # what the library takes any error of the system for
        raise UnreadableError(f"{path}: cannot be read") from None
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror or one_line(error)}") from None
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: {one_line(error)}") from None


def shard_name(path: Path, number: int, total: int) -> Path:
    """The file of one of `total` shards (from 0) of a file of tensors."""
    return path.with_name(f"{path.stem}-{number + 1:05d}-of-{total:05d}{path.suffix}")


def load_shards(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, or of the shards in its place: pieces along the first axis; ValueError if one is missing."""
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


def read_json(path: Path) -> Any:
    """Content of a JSON file; ValueError naming the file if it is none."""
    text = read_text(path)
    try:
        return from_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {one_line(error)}") from None


def read_checked(path: Path, kind: Any) -> Any:
    """Content of a JSON file that holds what a type declares; ValueError naming file and place if it does not."""
    return checked(kind, read_json(path), str(path), strict=True)


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


@contextmanager
def _filled(home: Path, name: str, write: Callable[[Path], None]) -> Iterator[Path]:
    """Within: a hidden folder with whole files and their manifest, which goes unless it is renamed."""
    fresh = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=UNFINISHED, dir=home))
    try:
        write(fresh)
        _seal(fresh)
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _seal(folder: Path) -> None:
    """Sync all files of a folder, then a manifest of them."""
    files = sorted(folder.iterdir())
    for path in files:
        _finish_file(path)
    (folder / MANIFEST).write_text(json.dumps({path.name: _fingerprint(path) for path in files}, indent=2) + "\n")
    _finish_file(folder / MANIFEST)
    folder.chmod(0o755)
    to_disk(folder)


def _finish_earlier_save(folder: Path) -> None:
    """Put in place what a killed writer had ready, and remove what it had not."""
    for path in folder.glob(".model.*"):  # folders: a file or a link of such a name is not ours
        if LEFTOVER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
    ready = folder / READY
    if os.path.lexists(ready):
        named = (ready / MANIFEST).is_file() and not ready.is_symlink()
        if not named or any(path.is_symlink() for path in ready.iterdir()):
            raise ValueError(f"{ready} {IN_THE_WAY}")
        check_folder(ready)
        _check_replaceable(folder, read_manifest(folder / READY))
        _put_in_place(folder)


def _check_replaceable(folder: Path, new: Manifest) -> None:
    """ValueError for a file that has the name of a new one and is not what was written here before.

    And for a checkpoint, which would be none without its state.
    """
    old = _earlier_manifest(folder)
    if STATE in old and STATE not in new:
        raise ValueError(f"{folder} is a checkpoint, from which its run could not go on: save elsewhere")
    if old and DESCRIPTION in new and DESCRIPTION not in old:
        raise ValueError(f"{folder / MANIFEST} {IN_THE_WAY}")  # others list sizes and hashes of files too
    for name in new:
        path = folder / name
        ours = path.is_file() and _fingerprint(path) in (old.get(name), new[name])
        if os.path.lexists(path) and not ours:
            raise ValueError(f"{path} {IN_THE_WAY}")


def _earlier_manifest(folder: Path) -> Manifest:
    """Return the manifest of an earlier save; ValueError if something else has the manifest's name."""
    if not os.path.lexists(folder / MANIFEST):
        return {}
    try:
        return read_manifest(folder)
    except ValueError:
        raise ValueError(f"{folder / MANIFEST} {IN_THE_WAY}") from None


def _put_in_place(folder: Path) -> None:
    """Give the files of READY their names and remove older ones of ours; cut off at any point, it can be done again."""
    ready = folder / READY
    new, old = read_manifest(ready), _earlier_manifest(folder)
    for name in new:
        _link(ready / name, folder / name)
    for name in old.keys() - new.keys():
        if (folder / name).is_file() and _fingerprint(folder / name) == old[name]:
            (folder / name).unlink()
    _link(ready / MANIFEST, folder / MANIFEST)  # the last one: it knows no longer what is to be removed
    to_disk(folder)
    doomed = Path(tempfile.mkdtemp(prefix=".model.", suffix=UNFINISHED, dir=folder))
    ready.rename(doomed)
    shutil.rmtree(doomed)


def _link(source: Path, place: Path) -> None:
    """Give a file a second place, at once, with the permissions of the file that was there."""
    spare = source.with_name(f"{source.name}{UNFINISHED}")
    spare.unlink(missing_ok=True)
    try:
        spare.hardlink_to(source)
    except OSError:  # a file system without links
        shutil.copyfile(source, spare)
    if place.exists():
        spare.chmod(stat.S_IMODE(place.stat().st_mode))
    to_disk(spare)
    spare.replace(place)


def _holds_only_ours(folder: Path) -> bool:
    try:
        named = read_manifest(folder).keys()
    except ValueError:
        return False
    return {path.name for path in folder.iterdir()} <= {*named, MANIFEST}
