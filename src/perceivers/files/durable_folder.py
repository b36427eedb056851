"""Atomic and durable writing of folders, with a manifest of the files: either all new files are there, or all old ones.

An existing folder keeps files that we did not write. Its new files are first completed in the hidden folder READY. If
this process is killed, `current` finds them there, and the next save moves them into place.
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
"""File of the schema and the config of a model."""

MANIFEST = "manifest.json"
"""File with the sizes and hashes of a folder's files."""

STATE = "state.json"
"""File that a checkpoint has in addition to the files of a model."""

READY = ".manifest.ready"
"""Hidden sub-folder with the files of a save while they move into place; they supersede the older ones."""

IN_THE_WAY = "was not saved here by us, or changed since: move it, or save elsewhere"

Manifest = dict[str, dict[str, int | str]]
"""Size and hash of files by name."""


@naming_its_target
def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder, then move its files into place: all of them, durably, or none.

    An existing folder keeps files that we did not write. Only files in its manifest are replaced or removed, and only
    if they are unchanged; ValueError naming any other file that has the name of a new one.
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
                fresh.rename(target / READY)  # from here on the new files are the current ones
                to_disk(target)
                _put_in_place(target)
    else:
        make_folder(target.parent)
        with _filled(target.parent, target.name, write) as fresh:
            _rename_durably(fresh, target)


def _rename_durably(fresh: Path, target: Path) -> None:
    """Rename a folder durably, or leave it as it was."""
    fresh.rename(target)
    try:
        to_disk(target.parent)
    except OSError:
        target.rename(fresh)  # the new name might not survive a loss of power, so nothing counts as saved
        raise


def current(folder: Path) -> Path:
    """Return the folder with the current files: READY if a save was interrupted while moving them, else `folder`."""
    ready = folder / READY
    return ready if not ready.is_symlink() and (ready / MANIFEST).is_file() else folder


def remove_folder(folder: Path) -> None:
    """Remove a folder that `write_folder` made, atomically: a half-removed one is never found under its name.

    A folder with other files in it is not removed but renamed to NAME.kept.xxxxxxxx.
    """
    if not _holds_only_ours(folder):
        folder.rename(tempfile.mkdtemp(prefix=f"{folder.name}.kept.", dir=folder.parent))
        return
    doomed = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=UNFINISHED, dir=folder.parent))
    folder.rename(doomed)
    shutil.rmtree(doomed)


def check_folder(folder: Path) -> None:
    """Raise a ValueError unless all files of the manifest are there, as they were written."""
    folder = current(folder)
    for name, fingerprint in read_manifest(folder).items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing")
        if _fingerprint(folder / name) != fingerprint:
            raise ValueError(f"{folder / name} is not what was written: damaged or changed")


def read_manifest(folder: Path) -> Manifest:
    """Load the manifest of a folder: size and hash by file name; ValueError if it is not one of `write_folder`."""
    path = folder / MANIFEST
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not manifest:
        raise ValueError(f"{path}: not a list of files")
    for name, fingerprint in manifest.items():
        if Path(name).name != name:
            raise ValueError(f"{path}: {name!r} is not the name of a file in its folder")
        if not isinstance(fingerprint, dict) or fingerprint.keys() != {"size", "sha256"}:
            raise ValueError(f"{path}: has no size and hash of {name!r}")
    return manifest


def _fingerprint(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


@contextmanager
def _filled(home: Path, name: str, write: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a hidden folder with complete files and their manifest; it is removed afterwards, unless renamed."""
    fresh = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=UNFINISHED, dir=home))
    try:
        write(fresh)
        _seal(fresh)
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _seal(folder: Path) -> None:
    """Sync all files of a folder to disk, then write their manifest."""
    files = sorted(folder.iterdir())
    for path in files:
        finish_file(path)
    (folder / MANIFEST).write_text(json.dumps({path.name: _fingerprint(path) for path in files}, indent=2) + "\n")
    finish_file(folder / MANIFEST)
    folder.chmod(0o755)
    to_disk(folder)


def _finish_earlier_save(folder: Path) -> None:
    """Move a killed process's completed save into place, and remove incomplete ones."""
    for path in folder.glob(".model.*"):  # only folders: a file or a link with such a name is not ours
        if LEFTOVER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
    ready = folder / READY
    if os.path.lexists(ready):
        is_ours = (ready / MANIFEST).is_file() and not ready.is_symlink()
        if not is_ours or any(path.is_symlink() for path in ready.iterdir()):
            raise ValueError(f"{ready} {IN_THE_WAY}")
        check_folder(ready)
        _check_replaceable(folder, read_manifest(folder / READY))
        _put_in_place(folder)


def _check_replaceable(folder: Path, new: Manifest) -> None:
    """Raise a ValueError for a file that has the name of a new one but was not written by an earlier save.

    The same for a checkpoint that would lose its state.
    """
    old = _earlier_manifest(folder)
    if STATE in old and STATE not in new:
        raise ValueError(f"{folder} is a checkpoint, from which its run could not go on: save elsewhere")
    if old and DESCRIPTION in new and DESCRIPTION not in old:
        raise ValueError(f"{folder / MANIFEST} {IN_THE_WAY}")  # another program's manifest of the same format
    for name in new:
        path = folder / name
        ours = path.is_file() and _fingerprint(path) in (old.get(name), new[name])
        if os.path.lexists(path) and not ours:
            raise ValueError(f"{path} {IN_THE_WAY}")


def _earlier_manifest(folder: Path) -> Manifest:
    """Return the manifest of an earlier save, {} if there is none; ValueError if another file has its name."""
    if not os.path.lexists(folder / MANIFEST):
        return {}
    try:
        return read_manifest(folder)
    except ValueError:
        raise ValueError(f"{folder / MANIFEST} {IN_THE_WAY}") from None


def _put_in_place(folder: Path) -> None:
    """Move the files of READY into place and remove our older ones; after any interruption, this can be repeated."""
    ready = folder / READY
    new, old = read_manifest(ready), _earlier_manifest(folder)
    for name in new:
        _link(ready / name, folder / name)
    for name in old.keys() - new.keys():
        if (folder / name).is_file() and _fingerprint(folder / name) == old[name]:
            (folder / name).unlink()
    _link(ready / MANIFEST, folder / MANIFEST)  # last: the old manifest lists the files to be removed
    to_disk(folder)
    doomed = Path(tempfile.mkdtemp(prefix=".model.", suffix=UNFINISHED, dir=folder))
    ready.rename(doomed)
    shutil.rmtree(doomed)


def _link(source: Path, target: Path) -> None:
    """Link a file to `target` atomically, with the permissions of the file that it replaces."""
    spare = source.with_name(f"{source.name}{UNFINISHED}")
    spare.unlink(missing_ok=True)
    try:
        spare.hardlink_to(source)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, spare)
    if target.exists():
        spare.chmod(stat.S_IMODE(target.stat().st_mode))
    to_disk(spare)
    spare.replace(target)


def _holds_only_ours(folder: Path) -> bool:
    """Return whether a folder holds only files that its manifest names."""
    try:
        names = read_manifest(folder).keys()
    except ValueError:
        return False
    return {path.name for path in folder.iterdir()} <= {*names, MANIFEST}
