"""A model from an example: a batch of inputs and targets."""

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

OWN_KINDS = {"number": "numbers", "category": "label"}
"""Names of the kinds of fields, as inputs of their own."""


def from_example(inputs: Mapping[str, Any], targets: Mapping[str, Any], config: Config | None = None) -> PerceiverIO:
    """A model for data like this: each name with a batch of values, arrays or lists, as many for each.

    Shapes say the kind: [B] numbers, or whole numbers as a target: classes; [B, n] vectors; [B, n, C] series;
    [B, H, W, C] pictures; [B, T, H, W, C] films; texts; as targets few texts: classes; lists of dictionaries: records;
    {"coordinates", "values"}: points. Statistics and vocabularies are fitted to the batch: give one that is typical.
    Channels come last: an array whose last axis has more than 4 places, and an earlier one no more than 4, is refused,
    and so are square pictures behind their channels. A warning tells of other shapes that may be misread.
    """
    for name in inputs.keys() & targets.keys():
        if inputs[name] is not targets[name]:
            raise ValueError(f"{name!r} is an input and a target with different values: give them two names")
    inputs, targets = ({name: _checked(name, x) for name, x in side.items()} for side in (inputs, targets))
    for name, values in {**inputs, **targets}.items():
        single = isinstance(values, Tensor | np.ndarray) and not values.ndim
        table = hasattr(values, "columns")  # of pandas: as a sequence it is the names of its columns
        if single or table or not isinstance(values, Sized) or isinstance(values, str | bytes | Mapping):
            raise ValueError(f"{name}: a batch of values is needed, an array or a list, not {type(values).__name__}")
    columns = {**inputs, **targets}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"an example needs as many values for each name, found {lengths}")
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    sides = {
        "inputs": {name: _own_kind(name, list(values), False) for name, values in inputs.items()},
        "outputs": {name: _own_kind(name, list(values), True) for name, values in targets.items()},
    }
    schema = from_plain(Schema, sides).fit(records)
    return Preset(schema, config or auto_config(schema)).build()


def _checked(name: str, values: Any) -> Any:
    if not isinstance(values, Tensor):
        return values
    named(name, check_values, values)
    return named(name, check_numbers, values)


def _own_kind(name: str, values: Sequence[Any], target: bool) -> dict[str, Any]:
    proposal = named(name, propose, values, target)
    kind = proposal.spec.get("kind")
    if kind in (None, "date"):
        raise ValueError(f"{name}: no kind suits these values: {proposal.why}")
    if proposal.is_doubtful:
        warnings.warn(f"{name}: read as {proposal.why}", stacklevel=4)
    return {**proposal.spec, "kind": OWN_KINDS.get(str(kind), kind)}
