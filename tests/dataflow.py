"""The files of the package that data pass through, in their order: `python tests/dataflow.py flow` or `train`.

Counted are files with a function that runs between the arguments and the end of the command; start-up (imports, the
reading of arguments) is not. `flow`: two frames to displacements. `train`: a table to a trained and scored model.
"""

import contextlib
import importlib
import inspect
import io
import pkgutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import perceivers
from perceivers.__main__ import parsed
from perceivers.cli.verbs import VERBS

PACKAGE = Path(perceivers.__file__).parent

FLOW = ["flow", "first.png", "second.png", "--random-weights", "0", "--out", "flow.flo"]
TRAIN = ["train", "mixed.yaml", "--out", "run", "--set", "training.num_steps=2", "--set", "training.batch_size=4"]


def files_passed(arguments: list[str]) -> list[str]:
    """Return the files of the package with a function that runs in a command, in the order they are reached."""
    importlib.import_module("lightning.fabric")  # a library that is imported later
    for module in pkgutil.walk_packages([str(PACKAGE)], "perceivers."):
        if module.name not in ("perceivers.__main__", "perceivers.core.fast.kernels"):
            importlib.import_module(module.name)
    passed: dict[str, None] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        is_function = bool(code.co_flags & inspect.CO_OPTIMIZED) and code.co_name != "<module>"
        if event == "call" and is_function and code.co_filename.startswith(str(PACKAGE)):
            passed[str(Path(code.co_filename).relative_to(PACKAGE))] = None

    with replaced_arguments(arguments):
        run: Callable[[], None] = parsed(VERBS)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            threading.setprofile(note)
            sys.setprofile(note)
            try:
                run()
            finally:
                sys.setprofile(None)
                threading.setprofile(None)
    return list(passed)


@contextlib.contextmanager
def replaced_arguments(arguments: list[str]) -> Iterator[None]:
    """Put arguments in place of those of this process."""
    before, sys.argv = sys.argv, ["perceivers", *arguments]
    try:
        yield
    finally:
        sys.argv = before


def write_frames(folder: Path) -> None:
    """Write two frames of noise."""
    import numpy as np
    from PIL import Image

    for name in ("first", "second"):
        pixels = np.random.default_rng(0).integers(0, 256, (368, 496, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")


def write_table(folder: Path) -> None:
    """Write a table of numbers and classes, and a schema file for it."""
    lines = [f"{n / 7:.2f},{'abc'[n % 3]},{'yes' if n % 2 else 'no'}" for n in range(40)]
    (folder / "mixed.csv").write_text("size,colour,bought\n" + "\n".join(lines) + "\n")
    (folder / "mixed.yaml").write_text(
        f"data: {{kind: table, file: {folder / 'mixed.csv'}}}\n"
        "schema:\n"
        "  inputs: {size: {kind: numbers}, colour: {kind: label}}\n"
        "  outputs: {bought: {kind: label}}\n"
        "training: {log_every: 1, accelerator: cpu}\n"
    )


def counted(what: str) -> list[str]:
    """Return the files of one of the two ways."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (write_frames if what == "flow" else write_table)(folder)
        places = {"first.png", "second.png", "flow.flo", "mixed.yaml", "run"}
        arguments = FLOW if what == "flow" else TRAIN
        return files_passed([str(folder / word) if word in places else word for word in arguments])


if __name__ == "__main__":
    found = counted(sys.argv[1])
    print("\n".join(found))
    print(f"{len(found)} files")
