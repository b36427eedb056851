"""Checks of arguments: what does not fit is refused in one line that names it and what would be right.

Conditions on shapes cost nothing. Conditions on values go through `require`, which decides when values are looked at.
"""

import dataclasses
import difflib
import functools
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

T = TypeVar("T")

SIZE, COUNT, FRACTION = (1.0, math.inf), (0.0, math.inf), (0.0, 1.0)
"""Ranges of the numbers of a configuration: a width or a length; a count; a probability."""

LONGEST_HINT, MOST_HINTS, MOST_LISTED = 100, 2000, 50
"""Characters of a name, and number of names, that a wrong one is compared with; names that a message lists."""


def require(holds: Bool[Tensor, ""], message: Callable[[], str]) -> None:
    """Raise a ValueError unless a condition on values holds, where they are looked at (`has_values`).

    On a GPU, a training step does not wait for the answer: there the error is the device's own.
    """
    if not has_values(holds):
        return
    if holds.is_cuda and torch.is_grad_enabled():
        torch._assert_async(holds, "a value of the batch is out of range: run the same batch on the CPU for its name")
    elif not bool(holds):
        raise ValueError(message())


def has_values(x: Tensor) -> bool:
    """Return whether the values of a tensor can be looked at; in compiled programs they cannot."""
    return not (
        torch.compiler.is_compiling()
        or x.device.type == "meta"
        or isinstance(x, FakeTensor)
        or torch._C._are_functorch_transforms_active()
        or (x.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, of Python or of NumPy; a truth value is none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_positive(name: str, value: Any) -> None:
    """Raise a ValueError unless an argument is a whole number of at least 1."""
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name} = {value!r:.99} must be a whole number, at least 1")


def check_ranges(settings: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise a ValueError for a number among the fields of a dataclass that is out of its range; None is no number."""
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


def check_new_name(what: str, name: str) -> None:
    """Raise a ValueError unless a part of a model can have this name."""
    known = isinstance(name, str) and name.isidentifier()
    # torch keeps parts by name as attributes of a module.
    if not known or hasattr(nn.ModuleDict(), name) or hasattr(nn.ParameterDict(), name):
        raise ValueError(f"{what}: name {name!r} must be letters, digits and underscores, and no word of torch's own")


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the names if all are known; else raise a ValueError with the nearest known one."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ValueError(f"{what}: names must come in a list, not as {names!r:.99}")
    names, known = list(names), dict.fromkeys(known)
    for name in names:
        if name not in known:
            listed = ", ".join(islice(known, MOST_LISTED)) + f", ... ({len(known)} in all)" * (len(known) > MOST_LISTED)
            raise ValueError(f"unknown {what} {name!r:.99}; there are {listed:.600}{near(str(name), known)}")
    return names


def near(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the known name that is nearest to a wrong one, or nothing."""
    short = [other for other in known if len(other) <= LONGEST_HINT][:MOST_HINTS]
    found = difflib.get_close_matches(name, short, n=1) if len(name) <= LONGEST_HINT else []
    return f"; did you mean {found[0]!r}?" if found else ""


def about(what: str, name: str, function: Callable[..., T], *arguments: Any) -> T:
    """Return what a function gives; its errors say which input or output they are about."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"{what} {name!r}: {error}") from error


@functools.cache
def _type_hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
