"""Checks of settings and arguments: an error is one line that names the invalid value and what would be right."""

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any

_type_hints = functools.cache(typing.get_type_hints)

SIZE, COUNT, FRACTION = (1.0, math.inf), (0.0, math.inf), (0.0, 1.0)
"""Ranges of the numbers of a configuration: a width or a length; a count; a probability."""


def is_whole(value: Any) -> bool:
    """Return whether a value is an integer of Python or NumPy; booleans are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_ranges(settings: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise a ValueError for a numeric field of a dataclass that is out of its range; None is allowed."""
    for name, (low, high) in ranges.items():
        value = getattr(settings, name, None)
        if isinstance(value, int | float) and not low <= value <= high:
            least = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:.15g}"
            raise ValueError(f"{name} = {value} must be {least}")


def check_fields(config: Any, ranges: Any = types.MappingProxyType({})) -> None:
    """Raise a ValueError for a field of a dataclass that is not of its type (but for unions), or out of its range."""
    kind: Any = type(config)
    hints = _type_hints(kind)
    for name, value in ((field.name, getattr(config, field.name)) for field in dataclasses.fields(config)):
        hint = hints[name]
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if value is None and types.NoneType in kinds:
            continue
        kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
        if typing.get_origin(hint) is typing.Literal:
            sound, right = value in typing.get_args(hint), f"one of {', '.join(typing.get_args(hint))}"
        elif kinds == (int,):
            sound, right = is_whole(value), "a whole number"
        elif kinds == (float,):
            sound = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
            right = "a finite number"
        elif all(type(kind) is type for kind in kinds) and int not in kinds:
            sound, right = isinstance(value, kinds), f"of type {' or '.join(kind.__name__ for kind in kinds)}"
        else:
            continue
        if not sound:
            raise ValueError(f"{name} = {value!r:.99} must be {right}")
    check_ranges(config, ranges)
