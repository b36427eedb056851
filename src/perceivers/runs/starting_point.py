"""The model that a recipe starts from (`--from`): what a run takes from it besides weights, and the weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

from perceivers.core.config import Config
from perceivers.core.perceiver import PerceiverIO
from perceivers.modalities.modality import Modality
from perceivers.pretrained.new_classes import vocabulary_lines
from perceivers.pretrained.transfer import transfer
from perceivers.runs.recipe import Recipe
from perceivers.runs.run import RECIPE, find_model, read_recipe
from perceivers.schema import Schema
from perceivers.schema.vocabularies import taken_over


@dataclass(frozen=True)
class StartingPoint:
    """The model that a recipe starts from; a run that has begun has taken all from it, and it may be gone."""

    recipe: Recipe
    """The recipe as it was given; `start_from` names the model."""
    run: Path
    """Folder of the run."""
    begun: bool
    """True if the run has made steps."""
    notify: Callable[[str], None]
    """Called with messages for the user."""

    @cached_property
    def model(self) -> PerceiverIO:
        """The model."""
        return find_model(str(self.recipe.start_from))

    @cached_property
    def kept(self) -> Recipe | None:
        """The recipe of a run that has begun, which has taken everything already; None: the run is new."""
        return read_recipe(self.run) if self.begun and (self.run / RECIPE).is_file() else None

    def config(self) -> Config:
        """Return the sizes of the model, for a recipe that leaves them open."""
        return cast(Config, self.model.config if self.kept is None else self.kept.config)

    def completed(self, fitted: Schema) -> Schema:
        """Return a schema fitted to data, with the model's statistics and vocabularies, and gates of further inputs."""
        schema = cast(Schema, self.model.schema) if self.kept is None else self.kept.schema
        whole, places = taken_over(self.recipe.schema, fitted, schema)
        if places and self.kept is None:
            self.notify(f"statistics of {self.recipe.start_from}, not of the data: {', '.join(places)}")
        if self.kept is not None:
            return gated(whole, [name for name, spec in schema.inputs.items() if spec.gate])
        names, others = self.further_inputs(whole)
        if names:
            self.notify(f"further inputs, behind gates that training opens: {', '.join(names)}")
        for reason, without in others.items():
            self.notify(f"further inputs, which change known outputs at once ({reason}): {', '.join(without)}")
        return gated(whole, names)

    def further_inputs(self, schema: Schema) -> tuple[list[str], dict[str, list[str]]]:
        """Return the inputs that the model does not read, to be put behind gates; and those that cannot, by reason.

        None if there are no inputs but these, or no output that the model has.
        """
        config = self.config() if self.recipe.config == "auto" else self.recipe.config
        known = cast(Schema, self.model.schema)
        if not any(_is_of_kind(spec, known.outputs.get(name)) for name, spec in schema.outputs.items()):
            return [], {}
        read, conditions = (_further(schema, known, role) for role in ("read", "condition"))
        others = {}
        if config.trunk != "perceiver" or config.encoder.attention_dropout:
            reason = f"trunk: {config.trunk}" if config.trunk != "perceiver" else "encoder.attention_dropout"
            others, read = {reason: read}, []
        if config.encoder.channel_alignment == "pad":  # a condition has no map of its own that could start at 0
            others["channel_alignment: pad"] = conditions
        return read, {reason: names for reason, names in others.items() if names}

    def load(self, model: PerceiverIO) -> None:
        """Load the weights that fit into a new model, and tell what was loaded."""
        loaded, fresh = transfer(model, self.model)
        self.notify(f"loaded from {self.recipe.start_from}: {', '.join(loaded) or 'nothing'}")
        self.notify(f"fresh: {', '.join(fresh) or 'nothing'}")
        for line in vocabulary_lines(model, self.model):
            self.notify(line)


def gated(schema: Schema, names: list[str]) -> Schema:
    """Return a schema with gates before some of its inputs."""
    inputs = {name: replace(spec, gate=spec.gate or name in names) for name, spec in schema.inputs.items()}
    return replace(schema, inputs=inputs)


def _further(schema: Schema, known: Schema, role: str) -> list[str]:
    """Return the inputs of a role that a known schema lacks in this role; none if it has no other in it."""
    names = [name for name, spec in schema.inputs.items() if spec.role == role]
    there = {name: spec for name, spec in known.inputs.items() if spec.role == role}
    further = [name for name in names if not _is_of_kind(schema.inputs[name], there.get(name))]
    return further if len(further) < len(names) else []


def _is_of_kind(spec: Modality, other: Modality | None) -> bool:
    return type(spec) is type(other)
