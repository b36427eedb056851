"""Recipes: data, schema, sizes, training settings and evaluations, everything that determines a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from perceivers.core.arguments import check_names
from perceivers.core.config import Config
from perceivers.data import AnyDataSet
from perceivers.modalities.modality import as_evaluated, named
from perceivers.schema import Schema, SchemaInFile, check_specs
from perceivers.schema.adapters import mask_probs
from perceivers.schema.plain_values import from_plain, to_plain
from perceivers.schema.preset import Preset, auto_config
from perceivers.training.metrics import check_mask_tokens
from perceivers.training.mixup import check_mixing
from perceivers.training.training_config import TrainingConfig

MOST_EVALUATIONS = 256
"""Largest number of evaluations of a recipe: each is a pass over the held-out records."""


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
        check_stream(self)
        if len(self.evaluations) > MOST_EVALUATIONS:
            raise ValueError(f"evaluations: {len(self.evaluations):,}, at most {MOST_EVALUATIONS}")
        for changes in self.evaluations.values():
            changed_specs(self.schema, changes)


def check_stream(recipe: Recipe) -> None:
    """Raise a ValueError unless the training, and the split of the data, follow the streams of the schema, if any."""
    stream, unroll = recipe.schema.stream, recipe.training.unroll
    if (stream is None) == (unroll > 1):
        right = "2 or more with a stream" if stream else "1 without a stream: name the field schema.stream"
        raise ValueError(f"training.unroll = {unroll} must be {right}")
    if stream is not None:
        recipe.data.check_streams(stream)


def preset_of(recipe: Recipe) -> Preset:
    """Return the preset of a recipe, with sizes that suit the schema for "auto"."""
    return Preset(recipe.schema, auto_config(recipe.schema) if recipe.config == "auto" else recipe.config)


def changed_schema(schema: Schema, changes: Mapping[str, Mapping[str, Any]]) -> Schema:
    """Return a schema with some fields of its inputs or outputs replaced for an evaluation, checked as in files.

    Corruptions in `changes` (`drop_prob`, `subsample`, `field_mask_prob`, `mask_words`, `mask_prob`) are applied too.
    ValueError for a field that has no effect in an evaluation, and for a mask token that the schema's model lacks.
    """
    changed = changed_specs(schema, changes)
    inputs, outputs = {**schema.inputs, **changed["inputs"]}, {**schema.outputs, **changed["outputs"]}
    return replace(schema, inputs=inputs, outputs=outputs)


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
