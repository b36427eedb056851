"""The result of reading: states of the online softmax, which can be added for different tokens in any order.

For scores s and values v of some tokens: max_score = max s, sum_exp = sum exp(s - max_score),
weighted_values = sum exp(s - max_score) v; attention is weighted_values / sum_exp. B batch, H heads, N latents.
"""

import itertools
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from perceivers.core.latents import Latents
from perceivers.core.layers import without_autocast
from perceivers.core.tokens import Segment

NO_SCORE = -1e30
"""max_score of a state without tokens: finite, so that the difference of two such scores is 0 and not NaN."""


@dataclass(frozen=True)
class SoftmaxState:
    """State of the online softmax of the latents' attention to some tokens."""

    max_score: Float[Tensor, "b h n"]
    """Approximately the largest score so far; keeps exponentials in range and cancels in every result."""
    sum_exp: Float[Tensor, "b h n"]
    """Sum of the exponentials of scores."""
    weighted_values: Float[Tensor, "b h n e"]
    """Sum of values, weighted with the exponentials."""

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> "SoftmaxState":
        """Return the state of queries [B, H, N, d], keys and values; `valid`: True for scores that count."""
        dtype = torch.promote_types(q.dtype, torch.float32)
        with without_autocast(q.device):
            scores = q.to(dtype) @ k.to(dtype).mT / math.sqrt(q.shape[-1])
            scores = scores if valid is None else scores.masked_fill(~valid, -math.inf)
            nothing = scores.new_full((*scores.shape[:-1], 1), NO_SCORE)  # finite without a valid key
            max_score = torch.cat([scores.detach(), nothing], -1).amax(-1)
            weights = (scores - max_score[..., None]).exp()
            return cls(max_score, weights.sum(-1), weights @ v.to(dtype))

    def __add__(self, other: "SoftmaxState") -> "SoftmaxState":
        """Return the state of both sets of tokens."""
        common = torch.maximum(self.max_score, other.max_score)
        one, two = self.relative_to(common), other.relative_to(common)
        return SoftmaxState(common, one.sum_exp + two.sum_exp, one.weighted_values + two.weighted_values)

    def relative_to(self, max_score: Float[Tensor, "b h n"]) -> "SoftmaxState":
        """Return the same state, with exponentials relative to another maximum."""
        scale = (self.max_score - max_score).exp()
        return SoftmaxState(max_score, self.sum_exp * scale, self.weighted_values * scale[..., None])

    def where(self, holds: Bool[Tensor, "b h n"]) -> "SoftmaxState":
        """Return this state where `holds` is True, elsewhere the state of no tokens."""
        max_score, sum_exp = torch.where(holds, self.max_score, NO_SCORE), torch.where(holds, self.sum_exp, 0)
        return SoftmaxState(max_score, sum_exp, torch.where(holds[..., None], self.weighted_values, 0))

    def attended(self) -> Float[Tensor, "b n he"]:
        """Return the weighted mean of the values, heads concatenated; 0 where there was no token."""
        mean = self.weighted_values / torch.where(self.sum_exp > 0, self.sum_exp, 1)[..., None]
        return rearrange(mean, "b h n e -> b n (h e)")

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> "SoftmaxState":
        """Return the sum of the states of all processes of a group; O(N D) numbers are sent.

        The gradient is summed too: average the gradients of weights over the processes, as data parallelism does.
        """
        common = self.max_score.clone()
        dist.all_reduce(common, dist.ReduceOp.MAX, group=group)
        rescaled = self.relative_to(common)
        parts = torch.cat([rescaled.sum_exp[..., None], rescaled.weighted_values], -1)
        if parts.requires_grad:
            parts.register_hook(lambda gradient: _all_reduced(gradient, group))
        sums = _all_reduced(parts.detach(), group) + (parts - parts.detach())  # adds 0 that carries the gradient
        return SoftmaxState(common, sums[..., 0], sums[..., 1:])


def _all_reduced(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


@dataclass(frozen=True)
class Reading:
    """Softmax states by input. Readings can be added, and inputs left out or replaced, before processing."""

    states: Mapping[str, SoftmaxState] = field(default_factory=dict)
    """Softmax state by input."""
    sources: Mapping[str, Segment] = field(default_factory=dict)
    """Tokens of inputs that serve as an output's queries, by input."""
    parts: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Extents (`Segment.extent`) that were read of each input that is not a set; None: the whole input."""
    start: Latents | None = None
    """The latents that read, if they or their condition depend on inputs or on the caller; None: the model's own."""

    def __add__(self, other: "Reading") -> "Reading":
        """Return both readings as one; ValueError if both have read the same tokens of an input."""
        if not isinstance(other, Reading):
            raise ValueError(f"a Reading can be added to a Reading, as `read` gives, not to {type(other).__name__}")
        batches = {state.max_score.shape[0] for one in (self, other) for state in one.states.values()} - {1}
        if len(batches) > 1:
            raise ValueError(f"readings of {' and '.join(map(str, sorted(batches)))} samples: read the same batch")
        if twice := set(self.sources) & set(other.sources):
            raise ValueError(f"the tokens of {', '.join(twice)} are an output's queries: read that input in one piece")
        start = self.start if self.states else other.start
        if self.states and other.states and not _is_same(self.start, other.start):
            raise ValueError("readings by different latents or conditions: give every read start=model.start(raw)")
        both = {name: self.states[name] + other.states[name] for name in self.states if name in other.states}
        for name in both:
            if self.states[name] is other.states[name]:
                raise ValueError(f"input {name!r} is read twice: the same reading is added to itself")
            for one, two in itertools.product(self.parts.get(name, ()), other.parts.get(name, ())):
                if one is None or two is None:
                    raise ValueError(f"input {name!r} is read twice: it was given whole, not in parts (Part)")
                one.check_apart(name, two)
        parts = {name: self.parts.get(name, ()) + other.parts.get(name, ()) for name in {**self.parts, **other.parts}}
        return Reading({**self.states, **other.states, **both}, {**self.sources, **other.sources}, parts, start)

    def without(self, *names: str) -> "Reading":
        """Return the reading as if these inputs had never been read."""
        if unknown := [name for name in names if name not in self.states]:
            raise ValueError(f"{', '.join(unknown)} was not read; there are {', '.join(self.states)}")
        states, sources, parts = (
            {k: v for k, v in entries.items() if k not in names} for entries in (self.states, self.sources, self.parts)
        )
        return Reading(states, sources, parts, self.start)  # type: ignore[arg-type]  # each has its own values

    def total(self) -> SoftmaxState:
        """Return the state of all inputs together."""
        if not self.states:
            raise ValueError("nothing was read")
        return reduce(operator.add, self.states.values())

    def shares(self) -> dict[str, Float[Tensor, "b h n"]]:
        """Return the share of each latent's attention that each input gets; the sum is 1 if anything was read."""
        total = self.total()
        whole = torch.where(total.sum_exp > 0, total.sum_exp, 1)
        return {name: state.relative_to(total.max_score).sum_exp / whole for name, state in self.states.items()}

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> "Reading":
        """Return the sum of the readings of all processes of a group, each of which has read a part of the inputs."""
        # Sorted: all processes must reduce the same input at a time, in whatever order they have read the inputs.
        return replace(self, states={name: self.states[name].all_reduce(group) for name in sorted(self.states)})


def _is_same(one: Latents | None, other: Latents | None) -> bool:
    if one is None or other is None or one is other:
        return one is other
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("array", "mask", "condition")]
    return all(x is y or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)


@dataclass(frozen=True)
class Encoded:
    """Encoded inputs, from which outputs can be decoded any number of times."""

    latents: Float[Tensor, "b n d"]
    """The latents after processing."""
    sources: Mapping[str, Segment] = field(default_factory=dict)
    """Tokens of inputs that serve as an output's queries (optical flow: the frames), before alignment."""
    around: Latents | None = None
    """The same latents with their mask, coordinates, condition and posterior; None: they have none of these."""
    trunk: Any = None
    """The trunk, which processes other samples of the bottleneck."""

    @classmethod
    def of(cls, latents: Latents, sources: Mapping[str, Segment], trunk: Any = None) -> "Encoded":
        """Return encoded inputs from the latents at the end of the trunk."""
        return cls(latents.array, sources, latents, None if latents.posterior is None else trunk)

    @property
    def mask(self) -> Bool[Tensor, "#b n"] | None:
        """True where a latent exists; None: all do."""
        return None if self.around is None else self.around.mask

    @property
    def posterior(self) -> Any:
        """The distribution in the bottleneck (`bottleneck.Posterior`); None: there is no bottleneck."""
        return None if self.around is None else self.around.posterior

    def sample(self, generator: torch.Generator | None = None) -> "Encoded":
        """Return encoded inputs with another sample of the bottleneck; ValueError without a bottleneck."""
        if self.posterior is None or self.trunk is None:
            raise ValueError("the model has no bottleneck to sample from: set config.bottleneck")
        latents = self.trunk.redrawn(self.around, self.posterior.sample(generator))
        return Encoded.of(latents, self.sources, self.trunk)
