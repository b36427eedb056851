"""The checkpoints of a run: listing them, and finding the latest and the best that are complete and finite."""

import math
import re
import warnings
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from perceivers.files.budgets import read_json
from perceivers.files.durable_folder import STATE, check_folder, read_manifest
from perceivers.files.opening import UnreadableError
from perceivers.files.tensor_files import check_finite
from perceivers.schema.schema_files import read_checked

KEPT = 2
"""Number of newest checkpoints of a run that are kept, in addition to the best."""

CHECKPOINTS = "checkpoints"
"""Folder of a run that holds its checkpoints."""


@with_config(ConfigDict(extra="allow"))
class State(TypedDict):
    """Content of a checkpoint's state.json, without its validation loss."""

    step: Annotated[int, Field(ge=0, lt=2**63)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    scale: dict[str, int | float]


def checkpoints(run: Path) -> list[Path]:
    """Return a run's checkpoints, newest first."""
    folder = run / CHECKPOINTS
    paths = folder.iterdir() if folder.exists() else ()  # unlike `glob`, raises if it cannot be read
    folders = [path for path in paths if is_place_of_checkpoint(path)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def is_place_of_checkpoint(folder: Path) -> bool:
    """Return True if this path has the form of a run's checkpoint folder, such as checkpoints/step-00000500."""
    return folder.parent.name == "checkpoints" and re.fullmatch(r"step-\d{8,}", folder.name) is not None


def latest_checkpoint(run: Path) -> Path | None:
    """Return the newest checkpoint that is complete and finite, or None; skip others with a warning.

    Raise an UnreadableError or OSError if the operating system refuses to read one.
    """
    return next(filter(_is_good, checkpoints(run)), None)


def best_checkpoint(run: Path) -> Path | None:
    """Return the complete, finite checkpoint with the lowest validation loss; without validation, the newest one.

    Raise an UnreadableError or OSError if the operating system refuses to read one.
    """
    scores = {folder: validation_score(folder) for folder in checkpoints(run)}
    ranked = sorted(scores, key=lambda folder: scores[folder])  # stable: of equal scores the newest comes first
    return next(filter(_is_good, ranked), None)


def diverged(step: int, what: str, checkpoint: Path | None) -> ValueError:
    """Return the error that ends a run whose numbers are no longer finite."""
    good = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
    return ValueError(f"step {step}: {what}: lower the learning rate or check the data; {good}")


def read_state(folder: Path) -> State:
    """Return the steps, time and loss scale of a checkpoint; a ValueError names what its file lacks."""
    state: State = read_checked(folder / STATE, State)
    return state


def validation_score(folder: Path) -> float:
    """Return the validation loss of a checkpoint; infinity, which is never the best, if it has no finite one."""
    try:
        score = float(read_json(folder / STATE)["score"])
    except UnreadableError:
        raise
    except (ValueError, KeyError, TypeError):
        score = math.inf
    return score if math.isfinite(score) else math.inf


def _is_good(folder: Path) -> bool:
    try:
        check_folder(folder)
        if STATE not in read_manifest(folder):
            raise ValueError(f"{folder} is a model alone, without the state of a run")
        check_finite(folder)
    except UnreadableError:  # a checkpoint that cannot be read now may be the best one
        raise
    except ValueError as error:
        warnings.warn(f"passing over a checkpoint: {error}", stacklevel=4)
        return False
    return True
