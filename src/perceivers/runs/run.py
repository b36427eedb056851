"""A run: a folder with a recipe, checkpoints, scores and a report. This module finds runs and opens them."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from perceivers.core.perceiver import PerceiverIO
from perceivers.data import DataSet
from perceivers.data.fingerprint import Fingerprint
from perceivers.data.validation import Parts, read_held_out
from perceivers.files.durable_folder import DESCRIPTION, MANIFEST, READY
from perceivers.pretrained.hub import from_pretrained
from perceivers.pretrained.model_folder import WEIGHTS, load_model, with_schema
from perceivers.runs.recipe import Recipe
from perceivers.schema import Record
from perceivers.schema.schema_files import from_file, read_checked
from perceivers.training.checkpoints import CHECKPOINTS, best_checkpoint
from perceivers.training.devices import best_device
from perceivers.training.logging import LOG, TENSORBOARD

RECIPE, UNREADABLE, DATA = "recipe.yaml", "unreadable.jsonl", "data.json"

RESULTS = (LOG, "metrics.json", "command.txt", "report.html")
"""Other files of a run, which are replaced."""

MODEL_FILES = (DESCRIPTION, WEIGHTS, MANIFEST, READY, "README.md")
"""Files of a model folder."""

Fingerprints = dict[str, Fingerprint]
"""Fingerprints of the parts of a data set, by name."""


@with_config(ConfigDict(extra="allow"))
class KeptData(TypedDict):
    """The content of a run's data.json: fingerprints of its data."""

    parts: Fingerprints
    """Current fingerprints."""
    accepted: NotRequired[list[Any]]
    """Changes of the data that were accepted, each with its step."""


class Run:
    """An open run: its recipe, its best model and its data, each read when it is first needed, and only once.

    `recipe` and `parts` are given by a run that was just trained and has read them already.
    """

    def __init__(self, folder: Path, recipe: Recipe | None = None, parts: Parts | None = None) -> None:
        self.folder, self.parts = folder, parts
        self.recipe = read_recipe(folder) if recipe is None else recipe

    @cached_property
    def model(self) -> PerceiverIO:
        """The model of the best checkpoint (without validation, the newest); ValueError if there is none."""
        checkpoint = best_checkpoint(self.folder)
        if checkpoint is None:
            raise ValueError(f"{self.folder} has no whole checkpoint: train it first")
        model = load_model(checkpoint).to(best_device())
        model.memory_limit = self.recipe.training.memory_limit
        return model

    @cached_property
    def training(self) -> Sequence[Record]:
        """The training records, including unreadable ones if the data have not been validated."""
        return self.recipe.data.training() if self.parts is None else self.parts.training

    @cached_property
    def held_out(self) -> Sequence[Record]:
        """The held-out records that the schema can read."""
        return read_held_out(self.recipe.data, self.recipe.schema) if self.parts is None else self.parts.held_out


def read_recipe(run: Path) -> Recipe:
    """Return the recipe of a run; ValueError if the folder is not a run folder."""
    if not (run / RECIPE).is_file():
        raise ValueError(f"{run} is not the folder of a run: it has no {RECIPE}")
    return from_file(Recipe, run / RECIPE)


def read_kept_data(run: Path) -> KeptData | None:
    """Return the content of a run's data.json, or None without one; ValueError for a file of other content."""
    if not (run / DATA).exists():
        return None
    try:
        kept: KeptData = read_checked(run / DATA, KeptData)
    except ValueError as error:
        raise ValueError(f"{error}: it holds no fingerprint of data, remove it to go on without one") from None
    return kept


def find_model(name: str, offline: bool = False) -> PerceiverIO:
    """Load the model of a run folder, of a model folder or of a hub repository."""
    if (Path(name) / RECIPE).is_file():
        return Run(Path(name)).model
    return with_schema(from_pretrained(name, offline=offline), name)


def load_local(source: Path) -> PerceiverIO | None:
    """Load the model of a run or of a model folder; return None for any other source."""
    return find_model(str(source)) if (source / DESCRIPTION).is_file() or data_of(source) else None


def data_of(run: Path) -> DataSet | None:
    """Return the data set that a run was trained on; None for a folder that holds no run."""
    return read_recipe(run).data if (run / RECIPE).is_file() else None


def files_of(folder: Path) -> list[Path]:
    """Return the files and folders that belong to a run or to a model, in which no other output may be written."""
    is_run = (folder / RECIPE).is_file()
    of_run = (RECIPE, UNREADABLE, DATA, *RESULTS, TENSORBOARD, CHECKPOINTS) if is_run else ()
    return [folder / name for name in (*of_run, *MODEL_FILES)]
