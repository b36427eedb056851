"""Folders written whole, with a manifest of their files: all new files are there and on disk, or the old ones are.

A folder that exists keeps what is not ours.
"""

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from perceivers.files.budgets import read_json
from perceivers.files.durable import LEFTOVER, UNFINISHED, finish_file, make_folder, naming_its_target, to_disk
from perceivers.files.locks import locked

DESCRIPTION = "model.json"
"""File of the schema and the sizes of a model."""

MANIFEST = "manifest.json"
"""File that lists the files of a folder, with their sizes and hashes."""

STATE = "state.json"
"""File that a checkpoint has beside those of a model."""

READY = ".manifest.ready"
"""Hidden folder within a folder: the files of a save that is being put in place. They count, not the older ones."""

IN_THE_WAY = "was not saved here by us, or changed since: move it, or save elsewhere"

Manifest = dict[str, dict[str, int | str]]
"""Size and hash of files by name."""


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


def check_folder(folder: Path) -> None:
    """Raise a ValueError unless every file that the manifest names is there as it was written."""
    folder = current(folder)
    for name, fingerprint in read_manifest(folder).items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing")
        if _fingerprint(folder / name) != fingerprint:
            raise ValueError(f"{folder / name} is not what was written: damaged or changed")


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


def _fingerprint(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


@contextmanager
def _filled(home: Path, name: str, write: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a hidden folder with whole files and their manifest, which is removed unless it is renamed."""
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
        finish_file(path)
    (folder / MANIFEST).write_text(json.dumps({path.name: _fingerprint(path) for path in files}, indent=2) + "\n")
    finish_file(folder / MANIFEST)
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
    """Raise a ValueError for a file that has the name of a new one and is not what was written here before.

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
