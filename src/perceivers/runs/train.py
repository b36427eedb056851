"""Training of a recipe in a run folder: completes the recipe from its data, and protects other runs and files."""

import dataclasses
import json
import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from perceivers.data.fingerprint import differences, fingerprint
from perceivers.data.validation import Parts, read_parts
from perceivers.files.durable import write_text
from perceivers.files.opening import read_text
from perceivers.pretrained.transfer import freeze
from perceivers.runs.recipe import Recipe, preset_of
from perceivers.runs.run import (
    DATA,
    RECIPE,
    RESULTS,
    UNREADABLE,
    Fingerprints,
    KeptData,
    Run,
    read_kept_data,
    read_recipe,
)
from perceivers.runs.starting_point import StartingPoint
from perceivers.schema.plain_values import to_plain
from perceivers.schema.schema_files import to_yaml
from perceivers.training.checkpoints import checkpoints
from perceivers.training.logging import read_log
from perceivers.training.loop import seed_step, train


def run_recipe(
    recipe: Recipe,
    run: Path,
    notify: Callable[[str], None] = lambda line: None,
    accept_changed_data: bool = False,
) -> Run:
    """Train a recipe in a folder, or resume it there; write recipe, log and checkpoints. Return the open run.

    `notify` is called with messages for the user before training starts. A run continues with the data it began with;
    changed data are an error that names the changes, unless `accept_changed_data`. Only the first process returns.
    """
    # Build the model, with initial weights of another one if the recipe names it.
    start = None if recipe.start_from is None else StartingPoint(recipe, run, has_steps(run), notify)
    recipe, parts, current = resolved(recipe, run, accept_changed_data, start)
    seed_step(recipe.training.seed)
    model = preset_of(recipe).build()
    freeze(model, recipe.freeze)
    if start is not None and not checkpoints(run):
        start.load(model)

    # Once the folder is locked, check again that it is free for this recipe, then write what the run keeps.
    def claim(step: int) -> None:
        check_claim(run, recipe)
        kept = kept_data(run, current(), step, accept_changed_data) if has_steps(run) else {"parts": current()}
        if not (run / RECIPE).exists() or read_recipe(run) != recipe:
            write_text(run / RECIPE, to_yaml(recipe))
        write_text(run / DATA, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
        if parts.unreadable:
            lines = [json.dumps(to_plain(row), ensure_ascii=False) + "\n" for row in parts.unreadable]
            write_text(run / UNREADABLE, "".join(lines))

    if not train(model, parts.training, recipe.training, run, claim):
        raise SystemExit(0)  # the other processes of the run end here
    return Run(run, recipe, parts)


def resolved(
    recipe: Recipe, run: Path, accept: bool, start: StartingPoint | None = None
) -> tuple[Recipe, Parts, Callable[[], Fingerprints]]:
    """Return a recipe completed from its data (statistics, vocabularies, sizes), the data, and their fingerprints.

    With `start`, what the recipe leaves open comes from that model, as far as the model has it. A run that has begun
    keeps its statistics, vocabularies and sizes, even if the data have changed since then. Raise a ValueError if they
    have changed and `accept` is False, or if the folder holds something else.
    """
    # Fill in statistics, vocabularies and sizes from the data as they are now.
    parts = read_parts(recipe.data, recipe.schema, *([] if start is None else [start.completed]))
    config = recipe.config if start is None or recipe.config != "auto" else start.config()
    preset = preset_of(dataclasses.replace(recipe, schema=parts.schema, config=config))
    whole = dataclasses.replace(recipe, schema=preset.schema, config=preset.config)
    current = cache(partial(fingerprints, whole, parts))
    # Prefer the recipe of a run that has begun, if it differs only in what the data filled in.
    if has_steps(run) and (run / RECIPE).is_file() and (run / DATA).exists():
        earlier = read_recipe(run)
        if earlier != whole and _differ_by_data(*map(to_plain, (recipe, whole, earlier))):
            kept_data(run, current(), 0, accept)
            return earlier, read_parts(recipe.data, earlier.schema), current
    check_claim(run, whole)
    # Equal recipes may list the fields of records in another order: weights follow that of the run.
    whole = read_recipe(run) if has_steps(run) and (run / RECIPE).is_file() else whole
    return whole, dataclasses.replace(parts, schema=whole.schema), current


def check_claim(run: Path, recipe: Recipe) -> None:
    """Raise a ValueError unless a run of this recipe may begin or continue in a folder.

    The recipe of a run without steps may be replaced; a file that no run has written may not.
    """
    # Check that the recipe can be written, as JSON in UTF-8.
    path = run / RECIPE
    try:
        json.dumps(to_plain(recipe), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        name = error.object[: error.end].rpartition('"')[2]
        raise ValueError(f"{name!r:.99}: not UTF-8, so no recipe can name it: rename the file") from None
    # Check that a new folder holds no file that the run would overwrite.
    if not path.exists():
        for name in (UNREADABLE, DATA, *RESULTS):
            if os.path.lexists(run / name):
                raise ValueError(f"{run / name} is in the way, in a folder that is not a run's: choose another --out")
        return
    # Check that an older recipe is the same, or was written by a run that made no step.
    earlier = read_recipe(run)
    if earlier == recipe:
        return
    if has_steps(run):
        raise ValueError(f"{run} holds a run of another recipe: choose another --out, or remove it")
    if read_text(path) != to_yaml(earlier):
        raise ValueError(f"{path} was not written by a run, and would be replaced: choose another --out")


def has_steps(run: Path) -> bool:
    """Return True if a run has checkpoints to continue from, or logged steps."""
    return bool(checkpoints(run) or read_log(run))


def fingerprints(recipe: Recipe, parts: Parts) -> Fingerprints:
    """Return the fingerprints of the training and the held-out part of a recipe's data."""
    sides = {"training": parts.training, "held out": parts.held_out}
    return {side: fingerprint(recipe.data, recipe.schema, records) for side, records in sides.items()}


def kept_data(run: Path, current: Fingerprints, step: int, accept: bool) -> KeptData:
    """Return the content of data.json; ValueError if the data have changed since the run began, unless `accept`.

    A run of an older version, which kept no fingerprints, continues.
    """
    before = read_kept_data(run) or {"parts": current}
    what = differences(before["parts"], current)
    if what and not accept:
        raise ValueError(f"the data of {run} have changed since it began ({what}): --accept-changed-data goes on")
    accepted = [*before.get("accepted", []), *([{"step": step, "changed": what}] if what else [])]
    return {"parts": current, "accepted": accepted} if accepted else {"parts": current}


def _differ_by_data(given: Any, whole: Any, earlier: Any) -> bool:
    """Return True if the recipes `whole` and `earlier` differ only where the data filled in the `given` recipe."""
    if given == whole:
        return bool(earlier == whole)
    if isinstance(given, dict) and isinstance(whole, dict) and isinstance(earlier, dict):
        return given.keys() == whole.keys() == earlier.keys() and all(
            _differ_by_data(given[key], whole[key], earlier[key]) for key in given
        )
    return True
