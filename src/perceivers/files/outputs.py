"""Checks of output paths: no output may replace an input, and no two may share a file."""

import os
from collections.abc import Iterable
from pathlib import Path

from perceivers.files.opening import shown_path


def check_outputs(outputs: Iterable[Path | str | None], inputs: Iterable[Path | str]) -> None:
    """Raise a ValueError for an output that is an input, lies in an input folder, or equals another output.

    Links are followed; None stands for no output. Every verb that writes calls this before it does any work.
    """
    written, read = [Path(path) for path in outputs if path is not None], [Path(path) for path in inputs]
    for number, output in enumerate(written):
        if any(_is_same(output, other) for other in written[:number]):
            raise ValueError(f"{shown_path(output)}: two outputs would be written to this file: name another one")
        for path in read:
            if _is_same(output, path) or Path(os.path.realpath(path)) in Path(os.path.realpath(output)).parents:
                where = "" if _is_same(output, path) else f" in {shown_path(path)}"
                raise ValueError(
                    f"{shown_path(output)}: an input{where}, which the output would change: write elsewhere"
                )


def _is_same(one: Path, other: Path) -> bool:
    """Return whether two paths lead to the same file, also where the file system ignores case."""
    same = os.path.realpath(one) == os.path.realpath(other)
    return same or (one.exists() and other.exists() and one.samefile(other))


def user_cache() -> Path | None:
    """Return the package's folder in the user's cache; None for a user without a home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perceivers"
    except RuntimeError:  # neither the environment nor the user database has a home folder
        return None
