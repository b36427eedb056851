"""Checks of a caller's arguments: conditions on values, names (with the nearest known one), numbers.

Conditions on values go through `require`, which decides when values are inspected.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from perceivers.core.checks import is_whole

LONGEST_HINT, MOST_HINTS, MOST_LISTED = 100, 2000, 50
"""Limits on hints: characters of a name, names that a wrong one is compared with, names that a message lists."""


def require(holds: Bool[Tensor, ""], message: Callable[[], str]) -> None:
    """Raise a ValueError unless a condition on values holds; no effect where values are unknown (`has_values`).

    A training step on a GPU does not wait for the answer: there the error is an assertion on the device.
    """
    if not has_values(holds):
        return
    if holds.is_cuda and torch.is_grad_enabled():
        torch._assert_async(holds, "a value of the batch is out of range: run the same batch on the CPU for its name")
    elif not bool(holds):
        raise ValueError(message())


def has_values(x: Tensor) -> bool:
    """Return whether the values of a tensor can be inspected; in compiled programs they cannot."""
    return not (
        torch.compiler.is_compiling()
        or x.device.type == "meta"
        or isinstance(x, FakeTensor)
        or torch._C._are_functorch_transforms_active()
        or (x.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the names if all are known; else raise a ValueError with the nearest known name."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ValueError(f"{what}: names must come in a list, not as {names!r:.99}")
    names, known = list(names), dict.fromkeys(known)
    for name in names:
        if name not in known:
            listed = ", ".join(islice(known, MOST_LISTED)) + f", ... ({len(known)} in all)" * (len(known) > MOST_LISTED)
            raise ValueError(f"unknown {what} {name!r:.99}; there are {listed or 'none':.600}{near(str(name), known)}")
    return names


def check_new_name(what: str, name: str) -> None:
    """Raise a ValueError unless a part of a model can have this name."""
    known = isinstance(name, str) and name.isidentifier()
    # torch stores submodules and parameters as attributes, so a name must not be that of an attribute.
    if not known or hasattr(nn.ModuleDict(), name) or hasattr(nn.ParameterDict(), name):
        raise ValueError(f"{what}: name {name!r} must be letters, digits and underscores, and no word of torch's own")


def near(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the known name that is nearest to a wrong one, or nothing."""
    short = [other for other in known if len(other) <= LONGEST_HINT][:MOST_HINTS]
    found = difflib.get_close_matches(name, short, n=1) if len(name) <= LONGEST_HINT else []
    return f"; did you mean {found[0]!r}?" if found else ""


def check_positive(name: str, value: Any) -> None:
    """Raise a ValueError unless an argument is a whole number of at least 1."""
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name} = {value!r:.99} must be a whole number, at least 1")


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
