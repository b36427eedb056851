"""Recipes and runs: a recipe holds data, schema, sizes and training; a run is a recipe in a folder."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from perceivers.core.adapters import mask_probs
from perceivers.core.arguments import check_names
from perceivers.core.config import Config
from perceivers.core.perceiver import PerceiverIO
from perceivers.data import AnyDataSet, DataSet
from perceivers.data.fingerprint import Fingerprint, differences, fingerprint
from perceivers.data.validation import Parts, read_parts
from perceivers.files.durable import write_text
from perceivers.files.durable_folder import DESCRIPTION, MANIFEST, READY
from perceivers.files.opening import read_text
from perceivers.modalities.modality import as_evaluated, named
from perceivers.pretrained.hub import from_pretrained
from perceivers.pretrained.model_folder import WEIGHTS, load_model
from perceivers.pretrained.transfer import freeze, transfer
from perceivers.schema import Schema, SchemaInFile, check_specs
from perceivers.schema.plain_values import from_plain, to_plain
from perceivers.schema.preset import Preset, auto_config
from perceivers.schema.schema_files import from_file, read_checked, to_yaml
from perceivers.training.checkpoints import CHECKPOINTS, best_checkpoint, checkpoints
from perceivers.training.devices import best_device
from perceivers.training.logging import LOG, TENSORBOARD, read_log
from perceivers.training.loop import seed_step, train
from perceivers.training.metrics import check_mask_tokens
from perceivers.training.mixup import check_mixing
from perceivers.training.training_config import TrainingConfig

RECIPE, UNREADABLE, DATA = "recipe.yaml", "unreadable.jsonl", "data.json"

MOST_EVALUATIONS = 256
"""Evaluations of a recipe: each is a pass over the held-out records."""

RESULTS = (LOG, "metrics.json", "command.txt", "report.html")
"""Other files of a run that are replaced."""

MODEL_FILES = (DESCRIPTION, WEIGHTS, MANIFEST, READY, "README.md")
"""Files of a model's folder."""

Fingerprints = dict[str, Fingerprint]
"""Fingerprints of the parts of a data set, by name."""


@with_config(ConfigDict(extra="allow"))
class KeptData(TypedDict):
    """What a run keeps of its data."""

    parts: Fingerprints
    """As they are now."""
    accepted: NotRequired[list[Any]]
    """What had changed, and at which step, when that was accepted."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run."""

    data: AnyDataSet
    """Where records come from."""
    schema: Schema
    """What goes in and what must come out."""
    config: Config | Literal["auto"] = "auto"
    """Sizes of the model; "auto": those that suit the schema."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How it learns."""
    evaluations: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Further evaluations by name, each with the fields of inputs and outputs to change for it."""
    start_from: str | None = None
    """Model whose weights it starts from, where they fit: folder of a model or of a run, or a hub repository."""
    freeze: tuple[str, ...] = ()
    """Parts that do not learn: latents, encoder, processor, decoder, input_adapter, ..., or beginnings of names."""
    task: str | None = None
    """Name of the task that it is a recipe of: knows what else to measure and to show."""

    def __post_init__(self) -> None:
        if self.training.mixup is not None:
            check_mixing(self.schema)
        if len(self.evaluations) > MOST_EVALUATIONS:
            raise ValueError(f"evaluations: {len(self.evaluations):,}, at most {MOST_EVALUATIONS}")
        for changes in self.evaluations.values():
            changed_specs(self.schema, changes)


def run_recipe(
    recipe: Recipe,
    run: Path,
    tell: Callable[[str], None] = lambda line: None,
    accept_changed_data: bool = False,
) -> None:
    """Train a recipe in a folder, or continue there; write recipe, log and checkpoints.

    `tell` is called with what is worth knowing before it starts. A run goes on with the data it began with; others are
    an error that says what has changed, unless `accept_changed_data`. Only the first process returns.
    """
    recipe, parts, found = resolved(recipe, run, accept_changed_data)
    seed_step(recipe.training.seed)
    model = preset_of(recipe).build()
    freeze(model, recipe.freeze)
    if recipe.start_from is not None and not checkpoints(run):
        loaded, fresh = transfer(model, find_model(recipe.start_from))
        tell(f"loaded from {recipe.start_from}: {', '.join(loaded) or 'nothing'}")
        tell(f"fresh: {', '.join(fresh) or 'nothing'}")

    def claim(step: int) -> None:
        check_claim(run, recipe)
        kept = kept_data(run, found(), step, accept_changed_data) if has_steps(run) else {"parts": found()}
        if not (run / RECIPE).exists() or read_recipe(run) != recipe:
            write_text(run / RECIPE, to_yaml(recipe))
        write_text(run / DATA, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
        if parts.unreadable:
            lines = [json.dumps(to_plain(row), ensure_ascii=False) + "\n" for row in parts.unreadable]
            write_text(run / UNREADABLE, "".join(lines))

    if not train(model, parts.training, recipe.training, run, claim):
        raise SystemExit(0)  # what comes is the first process's


def resolved(recipe: Recipe, run: Path, accept: bool) -> tuple[Recipe, Parts, Callable[[], Fingerprints]]:
    """Return a recipe with all that data decide (statistics, vocabularies, sizes), the data, and their fingerprints.

    A run that has begun goes on with what its data decided then; `accept`: although they have changed. ValueError if
    that is not accepted, or the folder holds something else.
    """
    parts = read_parts(recipe.data, recipe.schema)
    preset = preset_of(dataclasses.replace(recipe, schema=parts.schema))
    whole = dataclasses.replace(recipe, schema=preset.schema, config=preset.config)
    found = cache(partial(fingerprints, whole, parts))
    if has_steps(run) and (run / RECIPE).is_file() and (run / DATA).exists():
        earlier = read_recipe(run)
        if earlier != whole and _differ_by_data(*map(to_plain, (recipe, whole, earlier))):
            kept_data(run, found(), 0, accept)
            return earlier, read_parts(earlier.data, earlier.schema), found
    check_claim(run, whole)
    return whole, parts, found


def check_claim(run: Path, recipe: Recipe) -> None:
    """Raise a ValueError unless a run of this recipe may begin or go on in a folder.

    The recipe of a run that made no step may be replaced; a file that is not of a run may not.
    """
    path = run / RECIPE
    try:
        json.dumps(to_plain(recipe), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        name = error.object[: error.end].rpartition('"')[2]
        raise ValueError(f"{name!r:.99}: not UTF-8, so no recipe can name it: rename the file") from None
    if not path.exists():
        for name in (UNREADABLE, DATA, *RESULTS):
            if os.path.lexists(run / name):
                raise ValueError(f"{run / name} is in the way, in a folder that is not a run's: choose another --out")
        return
    earlier = read_recipe(run)
    if earlier == recipe:
        return
    if has_steps(run):
        raise ValueError(f"{run} holds a run of another recipe: choose another --out, or remove it")
    if read_text(path) != to_yaml(earlier):
        raise ValueError(f"{path} was not written by a run, and would be replaced: choose another --out")


def has_steps(run: Path) -> bool:
    """Return whether a run has made steps that it could go on from, or wrote of some."""
    return bool(checkpoints(run) or read_log(run))


def fingerprints(recipe: Recipe, parts: Parts) -> Fingerprints:
    """Return the fingerprint of both parts of a recipe's data."""
    sides = {"training": parts.training, "held out": parts.held_out}
    return {side: fingerprint(recipe.data, recipe.schema, records) for side, records in sides.items()}


def kept_data(run: Path, found: Fingerprints, step: int, accept: bool) -> KeptData:
    """Return what a run is to keep of its data; ValueError if they have changed since it began, unless `accept`.

    A run of an older version, which has nothing to compare with, goes on.
    """
    before = read_kept_data(run) or {"parts": found}
    what = differences(before["parts"], found)
    if what and not accept:
        raise ValueError(f"the data of {run} have changed since it began ({what}): --accept-changed-data goes on")
    accepted = [*before.get("accepted", []), *([{"step": step, "changed": what}] if what else [])]
    return {"parts": found, "accepted": accepted} if accepted else {"parts": found}


def read_kept_data(run: Path) -> KeptData | None:
    """Return what a run kept of its data, or None; ValueError for a file that holds no such thing."""
    if not (run / DATA).exists():
        return None
    try:
        kept: KeptData = read_checked(run / DATA, KeptData)
    except ValueError as error:
        raise ValueError(f"{error}: it holds no fingerprint of data, remove it to go on without one") from None
    return kept


def _differ_by_data(given: Any, whole: Any, earlier: Any) -> bool:
    """Return whether two recipes, `whole` and `earlier`, differ at most in what data filled into the `given` one."""
    if given == whole:
        return bool(earlier == whole)
    if isinstance(given, dict) and isinstance(whole, dict) and isinstance(earlier, dict):
        return given.keys() == whole.keys() == earlier.keys() and all(
            _differ_by_data(given[key], whole[key], earlier[key]) for key in given
        )
    return True


def preset_of(recipe: Recipe) -> Preset:
    """Return a recipe's preset, its sizes decided."""
    return Preset(recipe.schema, auto_config(recipe.schema) if recipe.config == "auto" else recipe.config)


def load_run(run: Path) -> tuple[Recipe, PerceiverIO]:
    """Return recipe and best model of a run (the newest, if it has no validation); ValueError if there is none."""
    checkpoint = best_checkpoint(run)
    recipe = read_recipe(run)
    if checkpoint is None:
        raise ValueError(f"{run} has no whole checkpoint: train it first")
    model = load_model(checkpoint).to(best_device())
    limit = recipe.training.memory_limit
    model.memory_limit = None if limit is None else limit * 1_000_000
    return recipe, model


def read_recipe(run: Path) -> Recipe:
    """Return the recipe of a run; ValueError if the folder is none."""
    if not (run / RECIPE).is_file():
        raise ValueError(f"{run} is not the folder of a run: it has no {RECIPE}")
    return from_file(Recipe, run / RECIPE)


def find_model(name: str, offline: bool = False) -> PerceiverIO:
    """Return the model of a run's folder, of a model's folder or of a hub repository."""
    return load_run(Path(name))[1] if (Path(name) / RECIPE).is_file() else from_pretrained(name, offline=offline)


def read_own(source: Path) -> PerceiverIO | None:
    """Return the model of a run, or of a folder in our own format; None for any other source."""
    return find_model(str(source)) if (source / DESCRIPTION).is_file() or data_of(source) else None


def data_of(run: Path) -> DataSet | None:
    """Return the data set that a run was trained on; None for a folder that holds no run."""
    return read_recipe(run).data if (run / RECIPE).is_file() else None


def own_files(folder: Path) -> list[Path]:
    """Return the files and folders that belong to a run or to a model, in which no other output may be written."""
    is_run = (folder / RECIPE).is_file()
    of_run = (RECIPE, UNREADABLE, DATA, *RESULTS, TENSORBOARD, CHECKPOINTS) if is_run else ()
    return [folder / name for name in (*of_run, *MODEL_FILES)]


def changed_schema(schema: Schema, changes: Mapping[str, Mapping[str, Any]]) -> Schema:
    """Return a schema with some fields of its inputs or outputs replaced for an evaluation, checked as in files.

    A corruption that is named (`drop_prob`, `subsample`, `field_mask_prob`, `mask_words`, `mask_prob`) acts. ValueError
    for a field
    that an evaluation does not feel, and for a mask token that the model of the schema lacks.
    """
    changed = changed_specs(schema, changes)
    return Schema({**schema.inputs, **changed["inputs"]}, {**schema.outputs, **changed["outputs"]})


def changed_specs(schema: Schema, changes: Mapping[str, Mapping[str, Any]]) -> SchemaInFile:
    """Return the inputs and outputs alone that an evaluation changes, checked as in files."""
    sides = {"inputs": schema.inputs, "outputs": schema.outputs}
    check_names("input or output", changes, {**schema.inputs, **schema.outputs})
    plain = {
        side: {
            name: named(name, as_evaluated, to_plain(specs[name]), changes[name]) for name in changes if name in specs
        }
        for side, specs in sides.items()
    }
    changed = from_plain(SchemaInFile, plain)
    check_specs("inputs", changed["inputs"], schema.inputs)
    check_specs("outputs", changed["outputs"], schema.inputs)
    check_mask_tokens(mask_probs(schema.inputs), changed["inputs"])
    return changed
