"""The files that the data of a command pass through, in order: `python tests/dataflow.py flow` or `train`.

`flow`: two pictures to a file of displacements. `train`: the rows of a table to the losses of the first step.

The command runs twice, with data of other values in the same shape. A file counts if one of its functions returns
rows, arrays or tensors that differ between the two runs, or if it writes the result. So neither weights nor positions
count, nor checks. `core/fast/`, which computes the same as `core/attention.py`, is switched off.
"""

import contextlib
import dataclasses
import importlib
import inspect
import io
import pkgutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

import perceivers
from perceivers.__main__ import parsed
from perceivers.cli.verbs import VERBS
from perceivers.core import layers
from perceivers.media.flow_files import write_flow
from perceivers.modalities.table_cells import Row
from perceivers.training.losses import Objective

PACKAGE = Path(perceivers.__file__).parent

COMMANDS = {
    "flow": ["flow", "first.png", "second.png", "--random-weights", "0", "--out", "flow.flo"],
    "train": ["train", "mixed.yaml", "--out", "run", "--set", "training.num_steps=1", "--set", "training.batch_size=4"],
}

END = Objective.forward.__code__
"""When this function returns, data have become losses."""

SINKS = (write_flow.__code__,)
"""Functions that write the results."""

COMPARED, DEEPEST = 1000, 3
"""Number of elements of an array that are compared; depth to which containers are searched for arrays."""

Given = list[tuple[str, str, list[Any]]]
"""Returned values in order: the file, the function and the values."""


class Recorder:
    """A recorder of the values that the package's functions return; `note` is for `sys.setprofile`."""

    def __init__(self) -> None:
        self.given: Given = []
        self.ended = self._looking = False

    def note(self, frame: FrameType, event: str, returned: Any) -> None:
        """Record what a function returns or yields."""
        code, file = frame.f_code, Path(frame.f_code.co_filename)
        if event != "return" or self.ended or self._looking or not file.is_relative_to(PACKAGE):
            return
        self._looking = True  # comparing data calls functions too
        if code.co_flags & inspect.CO_OPTIMIZED:
            values = frame.f_locals if code in SINKS else returned
            if found := list(found_in(values, DEEPEST)):
                self.given.append((str(file.relative_to(PACKAGE)), code.co_qualname, found))
        self.ended, self._looking = code is END, False
        if self.ended:
            sys.setprofile(None)


def found_in(value: Any, depth: int) -> Iterator[Any]:
    """Yield a comparable form of each row, array and tensor in a value."""
    if isinstance(value, Row):
        yield dict(value.cells)
    elif isinstance(value, Image.Image):
        yield from found_in(np.asarray(value), depth)
    elif isinstance(value, Tensor):
        if not value.is_meta:
            yield from found_in(value.detach().numpy(), depth)
    elif isinstance(value, np.ndarray):
        yield value.shape, value.ravel()[:: max(value.size // COMPARED, 1)].tobytes()
    elif depth:
        inside: Any = ()
        if isinstance(value, Mapping):
            inside = value.values()
        elif isinstance(value, list | tuple):
            inside = value
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            inside = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
        for one in inside:
            yield from found_in(one, depth - 1)


def recorded(arguments: list[str]) -> Given:
    """Return the values that each file returns in a command."""
    recorder, fast, before = Recorder(), layers.fast, sys.argv
    sys.argv = ["perceivers", *arguments]
    try:
        run: Callable[[], None] = parsed(VERBS)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            layers.fast = None
            threading.setprofile(recorder.note)
            sys.setprofile(recorder.note)
            run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        layers.fast, sys.argv = fast, before
    return recorder.given


def write_frames(folder: Path, seed: int) -> None:
    """Write two frames of noise."""
    rng = np.random.default_rng(seed)
    for name in ("first", "second"):
        Image.fromarray(rng.integers(0, 256, (368, 496, 3), np.uint8)).save(folder / f"{name}.png")


def write_table(folder: Path, seed: int) -> None:
    """Write a table of numbers and classes, and a schema file for it."""
    lines = [f"{n / 7 + seed:.2f},{'abc'[(n + seed) % 3]},{'yes' if (n + seed) % 2 else 'no'}" for n in range(40)]
    (folder / "mixed.csv").write_text("size,colour,bought\n" + "\n".join(lines) + "\n")
    (folder / "mixed.yaml").write_text(
        f"data: {{kind: table, file: {folder / 'mixed.csv'}}}\n"
        "schema:\n"
        "  inputs: {size: {kind: numbers}, colour: {kind: label}}\n"
        "  outputs: {bought: {kind: label}}\n"
        "training: {log_every: 1, accelerator: cpu}\n"
    )


def import_all() -> None:
    """Import every module, so that nothing is imported while a command is watched."""
    importlib.import_module("lightning.fabric")
    for module in pkgutil.walk_packages([str(PACKAGE)], "perceivers."):
        if module.name not in ("perceivers.__main__", "perceivers.core.fast.kernels"):
            importlib.import_module(module.name)


def files_passed(what: str) -> dict[str, str]:
    """Return the files that the data of a command pass through, each with the first function that returns them."""
    import_all()
    runs = []
    for seed in (0, 1):
        with tempfile.TemporaryDirectory() as name:
            (write_frames if what == "flow" else write_table)(Path(name), seed)
            names = {"first.png", "second.png", "flow.flo", "mixed.yaml", "run"}
            runs.append(recorded([f"{name}/{word}" if word in names else word for word in COMMANDS[what]]))
    passed: dict[str, str] = {}
    for (file, function, found), (other_file, _, other) in zip(*runs, strict=True):
        assert file == other_file, "the two runs call other functions"
        if found != other:
            passed.setdefault(file, function)
    return passed


if __name__ == "__main__":
    passed = files_passed(sys.argv[1])
    print("\n".join(f"{file:36} {function}" for file, function in passed.items()))
    print(f"{len(passed)} files")
