"""Checks of what a caller gives: conditions on values, names (with the nearest known one), numbers.

Conditions on values go through `require`, which decides when values are looked at.
"""

import difflib
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from perceivers.core.checks import is_whole

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


def check_new_name(what: str, name: str) -> None:
    """Raise a ValueError unless a part of a model can have this name."""
    known = isinstance(name, str) and name.isidentifier()
    # torch keeps parts by name as attributes of a module.
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
