"""A recipe says all about a run: data, schema, sizes, training. A run is a recipe in a folder."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from perceivers.core.perceiver import Config, PerceiverIO
from perceivers.data import Arrays, Digits, FlowPairs, FlowScenes, StarCraft
from perceivers.schema import Schema, from_file, from_plain, to_plain, to_yaml
from perceivers.storage import load_model, write_text
from perceivers.training.evaluation import Scores, evaluate
from perceivers.training.loop import TrainingConfig, seed_step, train
from perceivers.training.state import latest_checkpoint

RECIPE, METRICS = "recipe.yaml", "metrics.json"


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run."""

    data: Digits | Arrays | FlowScenes | FlowPairs | StarCraft
    """Where records come from."""
    schema: Schema
    """What goes in and what must come out."""
    config: Config = field(default_factory=Config)
    """Sizes of the model."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How it learns."""
    evaluations: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Further evaluations by name, each with the fields of inputs and outputs to change for it."""

    def __post_init__(self) -> None:
        for changes in self.evaluations.values():
            changed_schema(self.schema, changes)


def run_recipe(recipe: Recipe, run: Path) -> dict[str, Scores]:
    """Train a recipe in a folder, or continue there, and evaluate it; writes recipe, log, checkpoints and metrics."""
    training = recipe.data.training()
    fitted = dataclasses.replace(recipe, schema=recipe.schema.fit(training))
    _claim(run, fitted)
    seed_step(recipe.training.seed)
    model = PerceiverIO(fitted.schema, fitted.config)
    train(model, training, recipe.training, run)
    return evaluate_run(run)


def evaluate_run(run: Path) -> dict[str, Scores]:
    """Scores of a run's newest checkpoint on held-out records, by name of the evaluation; also written to a file."""
    recipe, model = load_run(run)
    held_out = recipe.data.held_out()
    schemas = {"held out": recipe.schema}
    schemas |= {name: changed_schema(recipe.schema, changes) for name, changes in recipe.evaluations.items()}
    scores = {name: evaluate(model, held_out, schema) for name, schema in schemas.items()}
    write_text(run / METRICS, json.dumps(scores, indent=2) + "\n")
    return scores


def load_run(run: Path) -> tuple[Recipe, PerceiverIO]:
    """Recipe and newest model of a run; ValueError if there is none."""
    if not (run / RECIPE).is_file():
        raise ValueError(f"{run} is not the folder of a run: it has no {RECIPE}")
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        raise ValueError(f"{run} has no whole checkpoint: train it first")
    model = load_model(checkpoint)
    return from_file(Recipe, run / RECIPE), model.to("cuda" if torch.cuda.is_available() else "cpu")


def changed_schema(schema: Schema, changes: Mapping[str, Mapping[str, Any]]) -> Schema:
    """A schema with some fields of its inputs or outputs replaced, checked as in files."""
    plain = to_plain(schema)
    for name, fields in changes.items():
        schema.changed(name)  # names what there is, if this is not there
        for side in plain.values():
            if name in side:
                side[name].update(fields)
    return from_plain(Schema, plain)


def _claim(run: Path, recipe: Recipe) -> None:
    path = run / RECIPE
    if path.exists() and from_file(Recipe, path) != recipe:
        raise ValueError(f"{run} holds a run of another recipe: choose another --out, or remove it")
    write_text(path, to_yaml(recipe))
