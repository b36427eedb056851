"""Events as columns: times, types and values of a set, read from any of its forms."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from perceivers.modalities.raw import as_array, is_missing
from perceivers.modalities.scalars import scalar
from perceivers.modalities.table_cells import number

PARTS = ("time", "type", "value")
"""Names of an event's parts, in the order of a list."""


def listed(value: Any) -> dict[str, Any]:
    """Return the columns of a list of events."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(f"events must come in a list, or in columns, not as {type(value).__name__}")
    columns: dict[str, list[Any]] = {name: [] for name in PARTS}
    for event in value:
        parts = event
        if isinstance(event, Mapping):
            parts = [event.get(name) for name in PARTS]
        if not isinstance(parts, Sequence) or isinstance(parts, str | bytes) or len(parts) not in (2, 3):
            raise ValueError(f"an event must be {{time, type, value}} or [time, type, value], not {event!r:.60}")
        for name, part in zip(PARTS, [*parts, None], strict=False):
            columns[name].append(part)
    return columns


def as_numbers(name: str, column: Any) -> Float[np.ndarray, " m"]:
    """Return numbers as float64, NaN where unknown; ValueError for text that is no number."""
    if isinstance(column, np.ndarray | Tensor) and as_array(column).dtype.kind in "fiub":
        return as_array(column).astype(np.float64)
    try:
        return np.array([np.nan if is_missing(cell) else number(cell) for cell in column], np.float64)
    except ValueError as error:
        raise ValueError(f"{name}: {error}{'; for dates, set dates: true' if name == 'time' else ''}") from None


def distinct(types: Sequence[Any] | np.ndarray) -> list[Any]:
    """Return the types that occur, in the order of their first events."""
    return list(dict.fromkeys(items(types)))


def items(types: Any) -> list[Any]:
    """Return types as plain values: tensors would be compared by identity."""
    return types.tolist() if isinstance(types, np.ndarray | Tensor) else [scalar(kind) for kind in types]
