"""What reading leaves behind. Reading is a sum over tokens: states of different tokens can be added, in any order."""

import itertools
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from perceivers.core.tokens import Segment

NOTHING_SEEN = -1e30
"""Reference of a state of no tokens: finite, so that a difference of two of them is 0 and not NaN."""


@dataclass(frozen=True)
class ReadState:
    """What the latents take from some tokens, before it is divided by what they take in all.

    With score s and value v of each token: sums of exp(s - reference) and of exp(s - reference) v.
    """

    reference: Float[Tensor, "b h n"]
    """About the largest score so far; it keeps exponentials in range and cancels in every result."""
    denominator: Float[Tensor, "b h n"]
    """Sum of exponentials."""
    weighted: Float[Tensor, "b h n e"]
    """Sum of values, weighted with exponentials."""

    def __add__(self, other: "ReadState") -> "ReadState":
        """What they take from both sets of tokens."""
        common = torch.maximum(self.reference, other.reference)
        one, two = self.relative_to(common), other.relative_to(common)
        return ReadState(common, one.denominator + two.denominator, one.weighted + two.weighted)

    def relative_to(self, reference: Float[Tensor, "b h n"]) -> "ReadState":
        """The same state, counted from another reference."""
        scale = (self.reference - reference).exp()
        return ReadState(reference, self.denominator * scale, self.weighted * scale[..., None])

    def where(self, holds: Bool[Tensor, "b h n"]) -> "ReadState":
        """The same state where this holds; elsewhere that of no tokens."""
        return ReadState(
            torch.where(holds, self.reference, NOTHING_SEEN),
            torch.where(holds, self.denominator, 0),
            torch.where(holds[..., None], self.weighted, 0),
        )

    def attended(self) -> Float[Tensor, "b n he"]:
        """The weighted mean of the values, heads side by side; 0 where there was no token."""
        seen = self.denominator > 0
        mean = self.weighted / torch.where(seen, self.denominator, 1)[..., None]
        return rearrange(mean, "b h n e -> b n (h e)")

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> "ReadState":
        """The sum of the states of all processes of a group; O(N D) numbers travel.

        The gradient is summed too: average the gradients of weights over the processes, as data parallelism does.
        """
        common = self.reference.clone()
        dist.all_reduce(common, dist.ReduceOp.MAX, group=group)
        own = self.relative_to(common)
        sums = _AllReduce.apply(torch.cat([own.denominator[..., None], own.weighted], -1), group)
        return ReadState(common, sums[..., 0], sums[..., 1:])


class _AllReduce(torch.autograd.Function):
    """The sum over all processes of a group; of gradients too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _AllReduce.apply(gradient, ctx.group), None


def sum_states(states: Iterable[ReadState]) -> ReadState:
    """Of at least one."""
    return reduce(operator.add, states)


@dataclass(frozen=True)
class Extent:
    """Which part of an input on a grid was read."""

    start: tuple[int, ...]
    """First place along each axis."""
    stop: tuple[int, ...]
    """Behind the last place along each axis."""
    size: tuple[int, ...] | None
    """Size of the whole; None: the size it is trained at."""

    def overlaps(self, other: "Extent") -> bool:
        """Tell whether both hold a place."""
        ends = zip(self.start, self.stop, other.start, other.stop, strict=True)
        return all(start < other_stop and other_start < stop for start, stop, other_start, other_stop in ends)


@dataclass(frozen=True)
class Reading:
    """What the latents take from each input. Add readings, leave inputs out, put others in; then process them."""

    states: Mapping[str, ReadState] = field(default_factory=dict)
    """By input."""
    sources: Mapping[str, Segment] = field(default_factory=dict)
    """Tokens of the inputs that an output asks with."""
    parts: Mapping[str, tuple[Extent | None, ...]] = field(default_factory=dict)
    """Parts read of each input that is no set; None: all of it."""

    def __add__(self, other: "Reading") -> "Reading":
        """Everything that either has read; what both have of an input are different tokens of it, or a ValueError."""
        if not isinstance(other, Reading):
            raise ValueError(f"a Reading can be added to a Reading, as `read` gives, not to {type(other).__name__}")
        batches = {state.reference.shape[0] for one in (self, other) for state in one.states.values()} - {1}
        if len(batches) > 1:
            raise ValueError(f"readings of {' and '.join(map(str, sorted(batches)))} samples: read the same batch")
        if twice := set(self.sources) & set(other.sources):
            raise ValueError(f"an output asks with the tokens of {', '.join(twice)}: read that input in one piece")
        both = {name: self.states[name] + other.states[name] for name in self.states if name in other.states}
        for name in both:
            if self.states[name] is other.states[name]:
                raise ValueError(f"input {name!r} is read twice: the same reading is added to itself")
            _check_parts(name, self.parts.get(name, ()), other.parts.get(name, ()))
        parts = {name: self.parts.get(name, ()) + other.parts.get(name, ()) for name in {**self.parts, **other.parts}}
        return Reading({**self.states, **other.states, **both}, {**self.sources, **other.sources}, parts)

    def without(self, *names: str) -> "Reading":
        """As if these inputs had never been read."""
        if unknown := [name for name in names if name not in self.states]:
            raise ValueError(f"{', '.join(unknown)} was not read; there are {', '.join(self.states)}")
        return Reading(
            {name: state for name, state in self.states.items() if name not in names},
            {name: source for name, source in self.sources.items() if name not in names},
            {name: parts for name, parts in self.parts.items() if name not in names},
        )

    def total(self) -> ReadState:
        """The state of all inputs together."""
        if not self.states:
            raise ValueError("nothing was read")
        return sum_states(self.states.values())

    def shares(self) -> dict[str, Float[Tensor, "b h n"]]:
        """Which part of its attention each latent gives to each input; they add up to 1 where anything was read."""
        total = self.total()
        whole = torch.where(total.denominator > 0, total.denominator, 1)
        parts = {name: state.relative_to(total.reference) for name, state in self.states.items()}
        return {name: state.denominator / whole for name, state in parts.items()}

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> "Reading":
        """The sum of the readings of all processes of a group, each of which has read a part of the same inputs."""
        # Sorted: all processes must add up the same input, in whatever order they have read theirs.
        return replace(self, states={name: self.states[name].all_reduce(group) for name in sorted(self.states)})


def _check_parts(name: str, ones: Iterable[Extent | None], others: Iterable[Extent | None]) -> None:
    """Raise a ValueError for parts of an input that do not belong together."""
    for one, other in itertools.product(ones, others):
        if one is None or other is None:
            raise ValueError(f"input {name!r} is read twice: it was given whole, not in parts (Part)")
        if one.size != other.size:
            raise ValueError(f"input {name!r} is read in parts of wholes of two sizes, {one.size} and {other.size}")
        if one.overlaps(other):
            parts = f"{one.start} to {one.stop} and {other.start} to {other.stop}"
            raise ValueError(f"input {name!r} is read twice: the parts {parts} overlap")


@dataclass(frozen=True)
class Encoded:
    """Inputs, read and processed: ask it as often as you like."""

    latents: Float[Tensor, "b n d"]
    """The latents after processing."""
    sources: Mapping[str, Segment] = field(default_factory=dict)
    """Tokens of the inputs that an output asks from (optical flow asks with its own input), in their own width."""
    mask: Bool[Tensor, "b n"] | None = None
    """Latents that exist; None: all do."""
