"""Checks of settings and arguments: an error is one line that names the invalid value and what would be right."""

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
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
            least = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise ValueError(f"{name} = {value} must be {least}")


def check_fields(config: Any) -> None:
    """Raise a ValueError for a field of a dataclass that is not of its type; unions of types are not checked."""
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
            sound, right = _is_number(value), "a finite number"
        elif all(type(kind) is type for kind in kinds) and int not in kinds:
            sound, right = isinstance(value, kinds), f"of type {' or '.join(kind.__name__ for kind in kinds)}"
        else:
            continue
        if not sound:
            raise ValueError(f"{name} = {value!r:.99} must be {right}")


def check_batches(what: str, sizes: Mapping[str, int]) -> None:
    """Raise a ValueError where batches differ; a batch of 1 stands for "the same for every sample"."""
    several = [size for size in sizes.values() if size != 1]
    if any(size != several[0] for size in several):
        found = ", ".join(f"{name} has {size} samples" for name, size in sizes.items())
        raise ValueError(f"{what} of one batch must be of as many samples, or of one for all: {found}")


def about(what: str, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function; its ValueErrors get the name of the input or output that they are about."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"{what} {name!r}: {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
