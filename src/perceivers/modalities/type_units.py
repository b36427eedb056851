"""Units of events: mean and standard deviation of the values of each type, fitted, and kept by name."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from perceivers.modalities.class_rows import Classes, class_names
from perceivers.modalities.modality import SMALLEST

Units = tuple[float, ...]
"""A statistic of each type, or one for all types."""


def statistics_by_type(
    numbers: Int[np.ndarray, " n"], values: Float[np.ndarray, " n"], count: int
) -> tuple[Units, Units]:
    """Return mean and standard deviation of the finite values of each type; 0 and 1 without any, std 1 if all agree."""
    known = np.isfinite(values) & (numbers >= 0)
    types, values = numbers[known], values[known]
    totals = np.maximum(np.bincount(types, minlength=count), 1)
    mean = np.bincount(types, values, count) / totals
    std = np.sqrt(np.bincount(types, (values - mean[types]) ** 2, count) / totals)
    # A mean is rounded, so that equal values may differ from it by its last bits.
    varied = std > np.maximum(np.abs(mean) * np.finfo(np.float32).eps, SMALLEST)
    return tuple(mean.tolist()), tuple(np.where(varied, std, 1.0).tolist())


def of_type(unit: Units | None, default: float, types: Tensor) -> Float[Tensor, "*b"]:
    """Return the unit of the type of each event, in float32."""
    each = torch.tensor([default, *(unit or (default,))], dtype=torch.float32, device=types.device)
    if len(each) == 2:  # one for all types
        return each[(types >= 0).long()]
    return each[types + 1 if types.dtype == torch.int64 else types.long() + 1]


def by_name(unit: Units | None, old: Classes, new: Classes) -> Units | None:
    """Return the statistic of each of the new types, by name; the mean of all for one that is not old."""
    if unit is None or len(unit) == 1:
        return unit
    known, mean = dict(zip(class_names(old), unit, strict=True)), float(np.mean(unit))
    return tuple(known.get(name, mean) for name in class_names(new))


def known_or_own(theirs: Units, own: Units, names: Sequence[str], known: Sequence[str]) -> Units:
    """Return a statistic of each type: theirs for known names, else own; one for all types stays that of all."""
    if len(theirs) == 1:
        return theirs
    own, found = own * len(names) if len(own) == 1 else own, set(known)
    return tuple(a if name in found else b for a, b, name in zip(theirs, own, names, strict=True))
