"""The schema: the named inputs and outputs of a model, each with its modality."""

import functools
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NotRequired, TypeVar

import numpy as np
import torch
from pydantic import ConfigDict, Field, GetCoreSchemaHandler, with_config
from pydantic_core import CoreSchema, core_schema
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from typing_extensions import TypedDict

from perceivers.core.arguments import check_names, check_new_name
from perceivers.core.checks import check_fields
from perceivers.core.config import Config
from perceivers.core.interfaces import InputAdapter
from perceivers.modalities import MODALITIES
from perceivers.modalities.guard import Guard
from perceivers.modalities.label import check_classes
from perceivers.modalities.modality import Modality, Raw, named
from perceivers.modalities.points import Points
from perceivers.schema.adapters import build_inputs, build_outputs, build_queries
from perceivers.schema.axes import check_axes
from perceivers.schema.memory import check_memory, num_bytes
from perceivers.schema.preprocessing import Fitting, Record, preprocessed, values_of

Batch = Mapping[str, Mapping[str, Any]]
"""A collated batch: raw values by name, under "inputs" and "targets"; in training perhaps also under "noise"."""

MOST_NAMES = 1024
"""Largest number of inputs, and of outputs: each adds a module to the model, which takes milliseconds to count."""

T = TypeVar("T")


@with_config(ConfigDict(extra="forbid"))
class SchemaInFile(TypedDict):
    """Inputs and outputs by name; files may only name the modalities of the package."""

    inputs: dict[str, Annotated[functools.reduce(operator.or_, MODALITIES), Field(discriminator="kind")]]  # type: ignore[valid-type]
    outputs: dict[str, Annotated[functools.reduce(operator.or_, MODALITIES), Field(discriminator="kind")]]  # type: ignore[valid-type]
    stream: NotRequired[str | None]


@dataclass(frozen=True)
class Schema:
    """Inputs and outputs of a model, by name."""

    inputs: Mapping[str, Modality]
    """Inputs by name."""
    outputs: Mapping[str, Modality]
    """Outputs by name."""
    stream: str | None = field(default=None, metadata={"only_if_given": True})
    """Field that names a record's stream: windows in order of time, which carry latents on; None: all begin anew."""

    def __post_init__(self) -> None:
        for side, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            if not specs:
                raise ValueError(f"{side} is empty: name at least one")
            if not isinstance(specs, Mapping):
                raise ValueError(f"{side} of type {type(specs).__name__}: give a dictionary of names")
            if len(specs) > MOST_NAMES:
                raise ValueError(
                    f"{side}: {len(specs):,} names, at most {MOST_NAMES:,}: combine columns into one of kind records"
                )
            check_specs(side, specs, self.inputs)

    def changed(self, name: str, **fields: Any) -> "Schema":
        """Return the schema with some fields of one input or output replaced."""
        check_names("input or output", [name], [*self.inputs, *self.outputs])
        inputs, outputs = (
            {n: replace(spec, **fields) if n == name else spec for n, spec in specs.items()}
            for specs in (self.inputs, self.outputs)
        )
        return replace(self, inputs=inputs, outputs=outputs)

    @functools.cached_property
    def uncorrupted(self) -> "Schema":
        """Schema for prediction: inputs are not corrupted or subsampled, so a record always gives the same values."""
        return replace(self, inputs={name: spec.uncorrupted() for name, spec in self.inputs.items()})

    def read(self, record: Record) -> dict[str, Any]:
        """Return a record's values as {"inputs", "targets"}, None where missing; ValueError for an unreadable value."""
        values, sides = values_of(record), {"inputs": self.inputs, "targets": self.outputs}
        return {side: {name: values(name, spec) for name, spec in specs.items()} for side, specs in sides.items()}

    def fit(self, records: Sequence[Record]) -> "Schema":
        """Return the schema with statistics and vocabularies fitted to the training records."""
        fitting = Fitting(self.inputs, self.outputs)
        for record in records if fitting.is_needed else ():
            fitting.add(record)
        inputs, outputs = fitting.fitted()
        return replace(self, inputs=inputs, outputs=outputs)

    def preprocess(
        self, record: Record, rng: np.random.Generator, training: bool, outputs: Collection[str] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Return a record as {"inputs", "targets"}, preprocessed.

        A value is None if the record lacks it, if the input is dropped, or if the target is not in `outputs` (None: all
        targets are). All random numbers come from `rng`.
        """
        return preprocessed(self.inputs, self.outputs, values_of(record), rng, training, outputs)

    def collate(self, samples: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Raw]]:
        """Collate preprocessed records into a batch; names without a value in any sample are left out."""
        batch: dict[str, dict[str, Raw]] = {}
        for side, specs in (("inputs", self.inputs), ("targets", self.outputs)):
            columns = {name: [sample[side][name] for sample in samples] for name in specs}
            present = {name: values for name, values in columns.items() if any(v is not None for v in values)}
            batch[side] = {name: named(name, specs[name].collate, values) for name, values in present.items()}
        return batch

    def points(self, targets: Mapping[str, Raw]) -> dict[str, Points]:
        """Return the points at which outputs are decoded for comparison with their targets, where points are needed."""
        points = {name: self.outputs[name].points(target) for name, target in targets.items()}
        return {name: each for name, each in points.items() if each is not None}

    @property
    def guard(self) -> Guard:
        """Checks of a caller's arguments to a model of this schema."""
        return Guard(self.inputs, self.outputs)

    def build_inputs(self, config: Config) -> tuple[nn.Module, nn.Module | None]:
        """Build the adapter of all inputs, and the module that makes the condition, if there is one."""
        check_axes(self.inputs, self.outputs, config)
        if self.stream is not None and (config.trunk == "transformer" or config.latents.taken_from is not None):
            kind = "taken_from" if config.latents.taken_from is not None else "trunk: transformer"
            raise ValueError(f"stream: {self.stream} carries learned latents on: leave {kind} out of the config")
        return build_inputs(self.inputs, config)

    def build_queries(self, config: Config, inputs: Mapping[str, InputAdapter]) -> nn.Module:
        """Build the queries of all outputs."""
        return build_queries(self.outputs, config, inputs)

    def build_outputs(self, config: Config, channels: int, inputs: Mapping[str, InputAdapter]) -> nn.Module:
        """Build the adapter of all outputs, whose heads take what the decoder computes, `channels` wide."""
        return build_outputs(self.outputs, config, channels, inputs)

    def dummy_input(self, batch_size: int, device: torch.device) -> tuple[dict[str, Raw], dict[str, Points]]:
        """Return raw inputs of the trained size, and points for the outputs that need them; their content is arbitrary.

        ValueError if the inputs do not fit into memory.
        """
        if device.type != "meta":
            shapes, _ = self.dummy_input(batch_size, torch.device("meta"))
            check_memory("inputs of the trained size", num_bytes(shapes))
        raw = {name: named(name, spec.dummy_input, batch_size, device) for name, spec in self.inputs.items()}
        points = {name: spec.dummy_points(batch_size, device) for name, spec in self.outputs.items()}
        return raw, {name: each for name, each in points.items() if each is not None}

    def losses(self, predictions: Mapping[str, Raw], targets: Mapping[str, Raw]) -> dict[str, Tensor]:
        """Return each output's loss times its weight; the training loss is their sum."""
        losses = {}
        for name, spec in self.outputs.items():
            if name in targets and name in predictions:
                device = tree_leaves(predictions[name])[0].device
                target = named(f"target {name!r}", spec.checked_target, targets[name], device)
                losses[name] = spec.weight * named(f"target {name!r}", spec.loss, predictions[name], target)
        return losses

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return pydantic's core schema: files may only name the modalities of the package."""
        return core_schema.no_info_after_validator_function(
            lambda sides: cls(**sides),
            handler.generate_schema(SchemaInFile),
        )


def check_specs(side: str, specs: Mapping[str, Any], inputs: Collection[str]) -> None:
    """Raise a ValueError naming the first invalid spec of a side, "inputs" or "outputs"; `inputs`: their names."""
    for name, spec in specs.items():
        check_new_name(side, name)
        named(f"{side}.{name}", _check_spec, spec)
        if side == "outputs":
            if spec.of is not None:
                check_names(f"input in outputs.{name}.of:", [spec.of], inputs)
            if spec.gate or spec.role != "read":
                field = "gate" if spec.gate else "role"
                raise ValueError(f"outputs.{name}: {field} is for inputs: leave it out")


def _check_spec(spec: Any) -> None:
    """Raise a ValueError if this is not a modality, or one of its fields is out of range."""
    if not isinstance(spec, Modality):
        raise ValueError(f"{spec!r:.99} is no declared structure, such as Numbers(count=3)")
    check_fields(spec)
    check_classes(getattr(spec, "classes", ()))


def find_modality(specs: Mapping[str, Any], modality: type[T]) -> tuple[str, T]:
    """Return the first input or output of a modality, with its name; ValueError if there is none."""
    for name, spec in specs.items():
        if isinstance(spec, modality):
            return name, spec
    found = ", ".join(f"{name} ({type(spec).__name__})" for name, spec in specs.items())
    raise ValueError(f"the model has no {modality.__name__}, only {found}")


def kind_name(modality: Modality | type[Modality]) -> str:
    """Return the name of a modality in files, or its class name if files cannot name it."""
    return str(getattr(modality, "kind", type(modality).__name__))
