"""Recipes and runs: a recipe holds data, schema, sizes and training settings; a run is a recipe in a folder."""

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
"""Largest number of evaluations of a recipe: each is a pass over the held-out records."""

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


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run."""

    data: AnyDataSet
    """The data set."""
    schema: Schema
    """Inputs and outputs of the model."""
    config: Config | Literal["auto"] = "auto"
    """Sizes of the model; "auto": sizes that suit the schema."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Settings of the training."""
    evaluations: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Further evaluations by name, each with the fields of inputs and outputs that it changes."""
    start_from: str | None = None
    """Model to take initial weights from, where they fit: a model folder, a run folder or a hub repository."""
    freeze: tuple[str, ...] = ()
    """Parts that are frozen: latents, encoder, processor, decoder, input_adapter, ..., or prefixes of names."""
    task: str | None = None
    """Name of the task that the recipe belongs to, for further scores and the report."""

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
    """Train a recipe in a folder, or resume it there; write recipe, log and checkpoints.

    `tell` is called with messages for the user before training starts. A run continues with the data it began with;
    changed data are an error that names the changes, unless `accept_changed_data`. Only the first process returns.
    """
    # Build the model, with initial weights of another one if the recipe names it.
    recipe, parts, prints = resolved(recipe, run, accept_changed_data)
    seed_step(recipe.training.seed)
    model = preset_of(recipe).build()
    freeze(model, recipe.freeze)
    if recipe.start_from is not None and not checkpoints(run):
        loaded, fresh = transfer(model, find_model(recipe.start_from))
        tell(f"loaded from {recipe.start_from}: {', '.join(loaded) or 'nothing'}")
        tell(f"fresh: {', '.join(fresh) or 'nothing'}")

    # Once the folder is locked, check again that it is free for this recipe, then write what the run keeps.
    def claim(step: int) -> None:
        check_claim(run, recipe)
        kept = kept_data(run, prints(), step, accept_changed_data) if has_steps(run) else {"parts": prints()}
        if not (run / RECIPE).exists() or read_recipe(run) != recipe:
            write_text(run / RECIPE, to_yaml(recipe))
        write_text(run / DATA, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
        if parts.unreadable:
            lines = [json.dumps(to_plain(row), ensure_ascii=False) + "\n" for row in parts.unreadable]
            write_text(run / UNREADABLE, "".join(lines))

    if not train(model, parts.training, recipe.training, run, claim):
        raise SystemExit(0)  # the other processes of the run end here


def resolved(recipe: Recipe, run: Path, accept: bool) -> tuple[Recipe, Parts, Callable[[], Fingerprints]]:
    """Return a recipe with all that its data decide (statistics, vocabularies, sizes), the data, and fingerprints.

    A run that has begun keeps what its data decided then, even if they have changed since and `accept` is True.
    Raise a ValueError if they have changed and `accept` is False, or if the folder holds something else.
    """
    # Fill in statistics, vocabularies and sizes from the data as they are now.
    parts = read_parts(recipe.data, recipe.schema)
    preset = preset_of(dataclasses.replace(recipe, schema=parts.schema))
    whole = dataclasses.replace(recipe, schema=preset.schema, config=preset.config)
    prints = cache(partial(fingerprints, whole, parts))
    # Prefer those of a run that has begun, if its recipe differs in nothing else.
    if has_steps(run) and (run / RECIPE).is_file() and (run / DATA).exists():
        earlier = read_recipe(run)
        if earlier != whole and _differ_by_data(*map(to_plain, (recipe, whole, earlier))):
            kept_data(run, prints(), 0, accept)
            return earlier, read_parts(earlier.data, earlier.schema), prints
    check_claim(run, whole)
    return whole, parts, prints


def check_claim(run: Path, recipe: Recipe) -> None:
    """Raise a ValueError unless a run of this recipe may begin or continue in a folder.

    The recipe of a run without steps may be replaced; a file that no run has written may not.
    """
    # The recipe can be written, as JSON in UTF-8.
    path = run / RECIPE
    try:
        json.dumps(to_plain(recipe), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        name = error.object[: error.end].rpartition('"')[2]
        raise ValueError(f"{name!r:.99}: not UTF-8, so no recipe can name it: rename the file") from None
    # A new folder holds no file that the run would overwrite.
    if not path.exists():
        for name in (UNREADABLE, DATA, *RESULTS):
            if os.path.lexists(run / name):
                raise ValueError(f"{run / name} is in the way, in a folder that is not a run's: choose another --out")
        return
    # The recipe that is there is the same, or was written by a run that made no step.
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


def kept_data(run: Path, prints: Fingerprints, step: int, accept: bool) -> KeptData:
    """Return the content of data.json; ValueError if the data have changed since the run began, unless `accept`.

    A run of an older version, which kept no fingerprints, continues.
    """
    before = read_kept_data(run) or {"parts": prints}
    what = differences(before["parts"], prints)
    if what and not accept:
        raise ValueError(f"the data of {run} have changed since it began ({what}): --accept-changed-data goes on")
    accepted = [*before.get("accepted", []), *([{"step": step, "changed": what}] if what else [])]
    return {"parts": prints, "accepted": accepted} if accepted else {"parts": prints}


def read_kept_data(run: Path) -> KeptData | None:
    """Return the content of a run's data.json, or None without one; ValueError for a file of other content."""
    if not (run / DATA).exists():
        return None
    try:
        kept: KeptData = read_checked(run / DATA, KeptData)
    except ValueError as error:
        raise ValueError(f"{error}: it holds no fingerprint of data, remove it to go on without one") from None
    return kept


def _differ_by_data(given: Any, whole: Any, earlier: Any) -> bool:
    """Return True if the recipes `whole` and `earlier` differ at most where data filled in the `given` one."""
    if given == whole:
        return bool(earlier == whole)
    if isinstance(given, dict) and isinstance(whole, dict) and isinstance(earlier, dict):
        return given.keys() == whole.keys() == earlier.keys() and all(
            _differ_by_data(given[key], whole[key], earlier[key]) for key in given
        )
    return True


def preset_of(recipe: Recipe) -> Preset:
    """Return the preset of a recipe, with sizes that suit the schema for "auto"."""
    return Preset(recipe.schema, auto_config(recipe.schema) if recipe.config == "auto" else recipe.config)


def load_run(run: Path) -> tuple[Recipe, PerceiverIO]:
    """Return the recipe and the best model of a run (without validation, the newest); ValueError if there is none."""
    checkpoint = best_checkpoint(run)
    recipe = read_recipe(run)
    if checkpoint is None:
        raise ValueError(f"{run} has no whole checkpoint: train it first")
    model = load_model(checkpoint).to(best_device())
    limit = recipe.training.memory_limit
    model.memory_limit = None if limit is None else limit * 1_000_000
    return recipe, model


def read_recipe(run: Path) -> Recipe:
    """Return the recipe of a run; ValueError if the folder is not a run folder."""
    if not (run / RECIPE).is_file():
        raise ValueError(f"{run} is not the folder of a run: it has no {RECIPE}")
    return from_file(Recipe, run / RECIPE)


def find_model(name: str, offline: bool = False) -> PerceiverIO:
    """Load the model of a run folder, of a model folder or of a hub repository."""
    return load_run(Path(name))[1] if (Path(name) / RECIPE).is_file() else from_pretrained(name, offline=offline)


def read_own(source: Path) -> PerceiverIO | None:
    """Load the model of a run or of a model folder; return None for any other source."""
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

    A named corruption (`drop_prob`, `subsample`, `field_mask_prob`, `mask_words`, `mask_prob`) acts in the evaluation.
    ValueError for a field that has no effect in one, and for a mask token that the schema's model lacks.
    """
    changed = changed_specs(schema, changes)
    return Schema({**schema.inputs, **changed["inputs"]}, {**schema.outputs, **changed["outputs"]})


def changed_specs(schema: Schema, changes: Mapping[str, Mapping[str, Any]]) -> SchemaInFile:
    """Return only the inputs and outputs that an evaluation changes, checked as in files."""
    sides = {"inputs": schema.inputs, "outputs": schema.outputs}
    check_names("input or output", changes, {**schema.inputs, **schema.outputs})
    # Change the fields in plain values, as a file holds them; then parse and check them like a file.
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
