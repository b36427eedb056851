"""A run whose model gets other vocabularies: its newest checkpoint and its recipe, in a new folder, ready to continue.

Rows of known classes go along by name in weights, averages and moments of the optimiser. New classes start at the mean
of the weights and of the averages. They have no history: their mean gradient (momentum) starts at 0, so that the first
step is their own. Their mean squared gradient starts at the mean of the others: from 0, adaptive steps would be several
times as large as the learning rate means them to be, until the mean has filled.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from perceivers.core.perceiver import PerceiverIO
from perceivers.files.budgets import read_json
from perceivers.files.durable import UNFINISHED, make_folder, naming_its_target, to_disk, write_text
from perceivers.files.durable_folder import STATE, write_folder
from perceivers.files.opening import read_text
from perceivers.files.tensor_files import load_shards, save_tensors
from perceivers.modalities.class_rows import Classes, ClassRows, Start, resized
from perceivers.pretrained.model_folder import WEIGHTS, load_model, load_weights, save_description
from perceivers.pretrained.new_classes import resized_arrays, with_classes
from perceivers.runs.recipe import Recipe
from perceivers.runs.run import DATA, RECIPE, read_recipe
from perceivers.schema.schema_files import to_yaml, with_settings
from perceivers.schema.vocabularies import class_rows, with_vocabularies
from perceivers.training.checkpoints import CHECKPOINTS, latest_checkpoint
from perceivers.training.logging import LOG, MOST_LOG_BYTES
from perceivers.training.training_state import TRAINING

MAY_CHANGE = ("data", "training.num_steps", "training.schedule", "training.optimiser.learning_rate")
"""Settings that a changed run may have of its own: its checkpoint fits any of them."""

SQUARES = "exp_avg_sq"
"""Name of the moment that is a mean of squared gradients; all others are means of gradients."""


def write_changed_run(run: Path, out: Path, classes: Mapping[str, Classes], settings: Iterable[str] = ()) -> str:
    """Write a run with other classes in some vocabularies to a new folder; return the name of its checkpoint.

    ValueError if the run has no checkpoint, or if a setting would not fit it.
    """
    recipe, checkpoint = read_recipe(run), latest_checkpoint(run)
    if checkpoint is None:
        raise ValueError(f"{run} has no whole checkpoint: train it first")
    recipe = _with_settings(replace(recipe, schema=with_vocabularies(recipe.schema, classes)), tuple(settings))
    model = load_model(checkpoint)
    changed = with_classes(model, classes)

    def fill(folder: Path) -> None:
        write_text(folder / RECIPE, to_yaml(recipe))
        # The log of a run that has not logged a step yet is empty.
        for name in (LOG, DATA) if (run / LOG).exists() and (run / LOG).stat().st_size else (DATA,):
            if (run / name).exists():
                write_text(folder / name, read_text(run / name, MOST_LOG_BYTES))
        place = folder / CHECKPOINTS / checkpoint.name
        write_folder(place, lambda target: _write_checkpoint(checkpoint, target, model, changed))

    _write_whole(out, fill)
    return checkpoint.name


def _with_settings(recipe: Recipe, settings: tuple[str, ...]) -> Recipe:
    """Return a recipe with other settings; ValueError for one that the checkpoint might not fit."""
    for setting in settings:
        field = setting.partition("=")[0]
        if not any(field == known or field.startswith(f"{known}.") for known in MAY_CHANGE):
            raise ValueError(
                f"setting {setting!r:.99}: a run that goes on may change {', '.join(MAY_CHANGE)}; for others start a "
                "new run --from this one"
            )
    return with_settings(recipe, settings) if settings else recipe


def _write_checkpoint(source: Path, target: Path, model: PerceiverIO, changed: PerceiverIO) -> None:
    """Write the files of a checkpoint with the rows of the changed model."""
    old, new = class_rows(model), class_rows(changed)
    save_description(changed, target)
    # A validation loss on other classes says nothing: the checkpoint must not stay the best for ever.
    (target / STATE).write_text(json.dumps({**read_json(source / STATE), "score": None}) + "\n")
    weights = resized_arrays(load_shards(source / WEIGHTS), old, new)
    load_weights(changed, weights, str(source / WEIGHTS))  # they must fit, or the run could not go on
    save_tensors(target / WEIGHTS, weights)
    arrays = load_shards(source / TRAINING)
    save_tensors(target / TRAINING, {name: _resized_state(name, x, old, new) for name, x in arrays.items()})


def _resized_state(name: str, array: Tensor, old: Mapping[str, ClassRows], new: Mapping[str, ClassRows]) -> Tensor:
    """Return an array that only training needs, such as "weight/NAME" or "moment/NAME/exp_avg", resized."""
    kind, _, parameter = name.partition("/")
    start: Start = "mean"
    if kind == "moment":
        parameter, _, moment = parameter.rpartition("/")
        start = "mean" if moment == SQUARES else "zero"
    known = parameter in old and kind in ("weight", "moment") and array.ndim > 0  # a number counts steps
    return resized(array, old[parameter], new[parameter], start) if known else array


@naming_its_target
def _write_whole(target: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write the files of a new folder, which appears once it is complete and on disk, or not at all."""
    make_folder(target.parent)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=UNFINISHED, dir=target.parent))
    try:
        fill(fresh)
        fresh.chmod(0o755)
        to_disk(fresh)
        fresh.rename(target)
        to_disk(target.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
