"""Conversion of single values of any library to Python's types, and to the classes that they name."""

from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceivers.core.arguments import require
from perceivers.modalities.raw import is_missing

UNKNOWN = -1
"""Number of an unknown class."""

IGNORED = -100
"""Class number that PyTorch's losses ignore by default; it is taken for an unknown class too."""

ROUNDING = 1e-3
"""Tolerance by which a probability may lie outside of 0 to 1: mixed labels are rounded."""


def scalar(value: Any) -> Any:
    """Return a single value of PyTorch, NumPy or an enumeration as a Python value; anything else as it is.

    Tensors hash by identity, so two equal tensors would count as two values.
    """
    if isinstance(value, Enum):
        return scalar(value.value) if isinstance(value, int | str) else value.name
    if isinstance(value, np.datetime64):
        return value.astype("datetime64[us]").item()  # nanoseconds would become a number
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0 and value is not np.ma.masked:
        return scalar(value.detach().cpu().item() if isinstance(value, Tensor) else value[()])
    if isinstance(value, np.generic):
        return value.item()
    return value


def class_value(value: Any) -> bool | int | str | None:
    """Return a class as a whole number, a name or a truth value; None where it is unknown.

    ValueError for several values, such as a list.
    """
    if is_missing(value := scalar(value)):
        return None
    if isinstance(value, bool | int | str):
        return None if value == IGNORED and not isinstance(value, str) else value
    if isinstance(value, float):
        return class_value(int(value)) if value.is_integer() else str(value)
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, list | tuple | dict | set | np.ndarray | Tensor | complex):
        raise ValueError(f"a class must be a name or a number, not a {type(value).__name__}")
    return str(value)


def class_name(cell: Any) -> str:
    """Return the class that a cell of a table names; 1 and 1.0 are one, since gaps turn whole numbers into floats."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def names_of(value: Any, known: bool | int | str) -> tuple[str, ...]:
    """Return the names that a class may have, given as `value`, whose `class_value` is `known`; the likeliest first.

    Models of earlier versions name whole numbers "1.0".
    """
    name = str(known)
    return name, str(value), *([f"{name}.0"] if name.removeprefix("-").isdigit() else [])


def class_numbers(numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return class numbers with 0 in place of unknown ones, and a mask that is True where they are known.

    -1 and -100 are unknown; ValueError for any other number that is not one of `count` classes.
    """
    if numbers.is_floating_point() or numbers.is_complex():
        raise ValueError(f"class numbers of type {numbers.dtype}, expected whole numbers")
    numbers = numbers.long()
    known = (numbers != UNKNOWN) & (numbers != IGNORED)
    inside = torch.where(known, numbers, torch.zeros_like(numbers))
    good = (inside >= 0) & (inside < count)
    require(
        good.all(),
        lambda: f"class {int(numbers[~good][0])} is not one of 0 to {count - 1} (unknown: {UNKNOWN}, {IGNORED})",
    )
    return inside, known


def class_chances(chances: Tensor, count: int, what: str) -> tuple[Tensor, Tensor]:
    """Return probabilities of `count` classes with 0 in place of unknown ones, and a mask that is True where known.

    NaN is unknown; ValueError for a number that is not a probability.
    """
    if chances.shape[-1] != count or chances.is_complex():
        raise ValueError(f"{what} of shape {tuple(chances.shape)}, expected {count} at the end, one for each class")
    chances = chances if chances.is_floating_point() else chances.float()
    known = ~chances.isnan()
    inside = torch.where(known, chances, torch.zeros_like(chances))
    good = (inside >= -ROUNDING) & (inside <= 1 + ROUNDING)
    require(good.all(), lambda: f"{what}: {float(inside.detach()[~good][0]):g} is not between 0 and 1")
    return inside, known
