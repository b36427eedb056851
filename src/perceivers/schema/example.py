"""Building a model from an example: one batch of inputs and targets."""

import warnings
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
from torch import Tensor

from perceivers.core.config import Config
from perceivers.core.perceiver import PerceiverIO
from perceivers.modalities.modality import named
from perceivers.modalities.raw import check_numbers, check_values
from perceivers.schema import Schema
from perceivers.schema.infer import propose
from perceivers.schema.plain_values import from_plain
from perceivers.schema.preset import Preset, auto_config

WHOLE_VALUE_KINDS = {"number": "numbers", "category": "label"}
"""The modality of a whole input or output, by the type of record field that `propose` returns."""


def from_example(inputs: Mapping[str, Any], targets: Mapping[str, Any], config: Config | None = None) -> PerceiverIO:
    """Build a model for data like this: a batch of values by name, as arrays or lists of equal length.

    Shapes and types decide the modality: [B] numbers (whole numbers as a target: classes); [B, n] vectors; [B, n, C]
    series; [B, H, W, C] pictures; [B, T, H, W, C] films; texts (few different ones as a target: classes); lists of
    dictionaries: records; {"coordinates", "values"}: point sets. Statistics and vocabularies are fitted to the batch,
    so give a typical one. Channels come last. Arrays whose channels seem to come first are refused: the last axis is
    longer than 4 and an earlier one is not, or the last two are a square. Other doubtful shapes raise a warning.
    """
    # Check that both sides hold batches of the same length.
    for name in inputs.keys() & targets.keys():
        if inputs[name] is not targets[name]:
            raise ValueError(f"{name!r} is an input and a target with different values: give them two names")
    inputs, targets = ({name: _checked(name, x) for name, x in side.items()} for side in (inputs, targets))
    for name, values in {**inputs, **targets}.items():
        single = isinstance(values, Tensor | np.ndarray) and not values.ndim
        table = hasattr(values, "columns")  # a pandas table: iteration would give the names of its columns
        if single or table or not isinstance(values, Sized) or isinstance(values, str | bytes | Mapping):
            raise ValueError(f"{name}: a batch of values is needed, an array or a list, not {type(values).__name__}")
    columns = {**inputs, **targets}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"an example needs the same number of values for each name, found {lengths}")
    # Propose a modality for each name, then fit the schema to the batch.
    records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    sides = {
        "inputs": {name: _proposed(name, list(values), False) for name, values in inputs.items()},
        "outputs": {name: _proposed(name, list(values), True) for name, values in targets.items()},
    }
    schema = from_plain(Schema, sides).fit(records)
    return Preset(schema, config or auto_config(schema)).build()


def _checked(name: str, values: Any) -> Any:
    if not isinstance(values, Tensor):
        return values
    named(name, check_values, values)
    return named(name, check_numbers, values)


def _proposed(name: str, values: Sequence[Any], target: bool) -> dict[str, Any]:
    proposal = named(name, propose, values, target)
    kind = proposal.spec.get("kind")
    if kind in (None, "date"):
        raise ValueError(f"{name}: no modality suits these values: {proposal.why}")
    if proposal.is_doubtful:
        warnings.warn(f"{name}: read as {proposal.why}", stacklevel=4)
    return {**proposal.spec, "kind": WHOLE_VALUE_KINDS.get(str(kind), kind)}
