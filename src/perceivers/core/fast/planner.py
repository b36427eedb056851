"""The choice of each cross-attention's algorithm: the one with the least work that fits into the memory limit.

The choice depends on shapes, type of device and limit alone, never on free memory or clocks: it is the same everywhere.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceivers.core.arguments import check_names
from perceivers.core.blocks import CrossAttention
from perceivers.core.decoder import Decoder, apply_heads, as_array, writing_arguments
from perceivers.core.fast import algorithms
from perceivers.core.fast.algorithms import Algorithm
from perceivers.core.fast.cost_model import GRADIENT, CostModel
from perceivers.core.fast.hooks import check_unhooked, is_hooked
from perceivers.core.fast.onednn import is_transformed
from perceivers.core.fast.op_counts import Cost
from perceivers.core.latents import Latents
from perceivers.core.memory_limits import limit_in_bytes
from perceivers.core.reading import SoftmaxState
from perceivers.core.tokens import Segment, Tokens
from perceivers.core.trunk import dense_states, reading_arguments

Tails = Mapping[str, Sequence[Any]]
"""The maps behind the decoder's block, by output (`epilogue.Tail`)."""


@dataclass(frozen=True)
class Plan:
    """Plan of the cross-attentions of a call: dense, or segment by segment, each with its own algorithm."""

    memory_limit: Any = None  # bytes, once it is checked
    """Limit of an attention's memory beyond its inputs and outputs, in bytes or as text such as "200MB"; None: none."""
    algorithm: Algorithm | None = None
    """Algorithm of every attention for which it is possible; None: the cheapest."""

    def __post_init__(self) -> None:
        if self.algorithm is not None:
            check_names("algorithm", [self.algorithm], get_args(Algorithm))
        object.__setattr__(self, "memory_limit", limit_in_bytes(self.memory_limit))

    @property
    def always_dense(self) -> bool:
        """True if only the dense algorithm may run: forced, or under a compiler or a transform (vmap, grad)."""
        return self.algorithm == "dense" or torch.compiler.is_compiling() or is_transformed()

    def needs_dense(
        self,
        cross: CrossAttention,
        latents: Latents,
        tokens: Tokens,
        output: Sequence[nn.Module] = (),
        heads: Mapping[str, Any] | None = None,
    ) -> bool:
        """Return whether the block must be called as a whole, with arrays; ValueError if that takes too much memory.

        With `heads`, which follow the modules `output`, `tokens` are queries. Hooks need arrays.
        """
        if not self.always_dense and not is_hooked(cross, sharding=False):
            return False
        if self.memory_limit is not None and not torch.compiler.is_compiling():
            tails: Any = {} if heads is None else {name: (*output, head) for name, head in heads.items()}
            models = [CostModel(cross, _expanded(latents), x, tails.get(name)) for name, x in tokens.segments.items()]
            _check_fits(sum(model.costs()["dense"].bytes(0) for model in models), self.memory_limit)
        return True

    def read(self, cross: CrossAttention, latents: Latents, tokens: Tokens) -> Float[Tensor, "b n d"]:
        """Return the latents updated with all tokens."""
        choices = choose_for_reading(cross, latents, tokens, self)
        if not choices:
            return cross.dense(*reading_arguments(cross, latents, tokens))
        return cross.update(latents, reduce(operator.add, _states(cross, latents, tokens, choices).values()))

    def states(self, cross: CrossAttention, latents: Latents, tokens: Tokens) -> dict[str, SoftmaxState]:
        """Return the softmax state of each segment."""
        check_unhooked(cross)
        choices = choose_for_states(cross, latents, tokens, self)
        assert choices is not None, "weights are not dropped"
        return _states(cross, latents, tokens, choices)

    def in_blocks(
        self, decoder: Decoder, queries: Tokens, latents: Latents, heads: Mapping[str, Any]
    ) -> dict[str, Float[Tensor, "b _ _"]]:
        """Return [B, O, e] of each output of a decoder of several layers, as many queries at a time as fit the limit.

        For a gradient, a block runs again through the layers before the last; else through all layers, and at most half
        of the limit is for those before the last.
        """
        limit, is_trained, written, joined = self.memory_limit, torch.is_grad_enabled(), {}, {}
        for name, segment in queries.segments.items():
            each, fixed, last = self._layer_bytes(decoder, segment, latents, heads[name])
            share = 1 if is_trained else 2
            _check_fits(max(share * (each + fixed), share * last), limit)
            size = min((limit // share - fixed) // each, max(segment.num_tokens, 1))
            firsts = range(0, max(segment.num_tokens, 1), size)
            blocks = [Tokens({name: segment.block(at, min(at + size, segment.num_tokens))}) for at in firsts]
            if is_trained:
                parts = [checkpoint(decoder.before_last, block, latents, use_reentrant=False) for block in blocks]
                joined[name] = as_array(segment, torch.cat([part.segments[name].content for part in parts], 1))
            else:
                rest, head = replace(self, memory_limit=limit - fixed - size * each), {name: heads[name]}
                parts = [
                    decoder.last(decoder.before_last(block, latents), latents, head, rest)[name] for block in blocks
                ]
                written[name] = torch.cat(parts, 1)
        return decoder.last(Tokens(joined), latents, heads, self) if is_trained else written

    def _layer_bytes(self, decoder: Decoder, segment: Segment, latents: Latents, head: Any) -> tuple[int, int, int]:
        """Return the memory of the layers before the last, per query and fixed, and the least of the last layer.

        Without a gradient, a last layer that is dense counts as one of those before it.
        """
        array, is_trained = _expanded(latents), torch.is_grad_enabled()
        layers: Any = decoder.earlier
        models, cross = [CostModel(layer, array, segment, ()) for layer in layers], decoder.cross_attention
        writing, least = CostModel(cross, array, segment, (*decoder.tail, head)), 0
        costs = writing.costs()
        is_dense = replace(self, memory_limit=None).needs_dense(cross, latents, Tokens(), (), {}) or len(costs) == 1
        if is_dense and not is_trained:
            models.append(writing)
        else:
            possible = {"dense": costs["dense"]} if is_dense else costs
            possible = {name: cost for name, cost in possible.items() if name == self.algorithm} or possible
            least = min(cost.bytes(cost.unit) for cost in possible.values())
        # A gradient needs the activations of all layers.
        together, factor = (sum, GRADIENT) if is_trained else (max, 1)
        each = factor * together(model.costs()["dense"].token_bytes for model in models)
        fixed = factor * together(model.latent_bytes for model in models)
        return each, fixed + writing.content_gradient + (0 if is_trained else writing.written_bytes), least

    def write(
        self,
        cross: CrossAttention,
        queries: Tokens,
        latents: Latents,
        output: tuple[nn.Module, ...],
        heads: Mapping[str, Any],
    ) -> dict[str, Float[Tensor, "b _ _"]]:
        """Return [B, O, e] of each output, after the modules that all outputs share and the output's head."""
        tails = {name: (*output, heads[name]) for name in queries.segments}
        choices = choose_for_writing(cross, latents, queries, tails, self)
        written = {
            name: algorithms.write(
                cross, queries.segments[name], latents, tails[name], choice.algorithm, choice.block_size
            )
            for name, choice in choices.items()
        }
        dense = Tokens({name: segment for name, segment in queries.segments.items() if name not in written})
        if dense.segments:
            x = cross.dense(*writing_arguments(cross, dense, latents))
            written |= apply_heads(x, dense, output, heads)
        return {name: written[name] for name in queries.segments}


def _states(
    cross: CrossAttention, latents: Latents, tokens: Tokens, choices: Mapping[str, "Choice"]
) -> dict[str, SoftmaxState]:
    dense = {name: x for name, x in tokens.segments.items() if choices[name].algorithm == "dense"}
    states = dense_states(cross, latents, Tokens(dense))
    for name in tokens.segments.keys() - dense.keys():
        choice = choices[name]
        states[name] = algorithms.read(cross, latents, tokens.segments[name], choice.algorithm, choice.block_size)
    return {name: states[name] for name in tokens.segments}


@dataclass(frozen=True)
class Choice:
    """The algorithm that a cross-attention takes for one segment."""

    algorithm: Algorithm
    """The chosen algorithm."""
    block_size: int
    """Approximate number of tokens in a block."""
    costs: Mapping[Algorithm, Cost]
    """The cost of every algorithm that is possible, including this one."""

    @property
    def cost(self) -> Cost:
        """The cost of the chosen algorithm."""
        return self.costs[self.algorithm]

    @property
    def bytes(self) -> int:
        """Memory taken in addition to inputs and outputs, in bytes."""
        return self.cost.bytes(self.block_size)


def choose(model: CostModel, plan: Plan, dense: bool) -> Choice | None:
    """Return the cheapest algorithm, or the forced one, within the limit; None if none is possible.

    `dense`: True if the dense algorithm may be chosen. ValueError if no algorithm fits into the limit.
    """
    costs = model.costs()
    allowed = {algorithm: cost for algorithm, cost in costs.items() if dense or algorithm != "dense"}
    allowed = {plan.algorithm: allowed[plan.algorithm]} if plan.algorithm in allowed else allowed
    if not allowed:
        return None
    limit = math.inf if plan.memory_limit is None else plan.memory_limit
    fitting = {algorithm: cost for algorithm, cost in allowed.items() if cost.bytes(cost.unit) <= limit}
    if not fitting:
        _check_fits(min(cost.bytes(cost.unit) for cost in allowed.values()), limit)
    algorithm = min(fitting, key=lambda name: fitting[name].work)
    cost = fitting[algorithm]
    if algorithm == "dense":
        return Choice(algorithm, cost.unit, costs)
    room = (limit - cost.fixed_bytes) / cost.token_bytes
    return Choice(algorithm, max(int(min(model.default_block(algorithm), room)), cost.unit), costs)


def choose_for_states(cross: CrossAttention, latents: Latents, tokens: Tokens, plan: Plan) -> dict[str, Choice] | None:
    """Return for each segment an algorithm that gives a softmax state; None if dropout of weights forbids that.

    The dense algorithm is chosen only where the block's weights are not known.
    """
    choices = {}
    for name, segment in tokens.segments.items():
        model = CostModel(cross, _expanded(latents), segment, None)
        choice = None if model.drops_weights else choose(model, plan, dense=not model.is_transparent)
        if choice is None:
            return None
        choices[name] = choice
    return choices


def choose_for_reading(cross: CrossAttention, latents: Latents, tokens: Tokens, plan: Plan) -> dict[str, Choice]:
    """Return a choice for each segment; an empty dictionary if all are dense.

    Either all segments are dense or none: the softmax of the dense algorithm runs over all of them.
    """
    if plan.always_dense:
        return {}
    states = choose_for_states(cross, latents, tokens, plan)
    if states is None:
        return {}
    dense = [
        CostModel(cross, _expanded(latents), segment, None).costs()["dense"] for segment in tokens.segments.values()
    ]
    needed = sum(cost.bytes(0) for cost in dense)
    if any(choice.algorithm == "dense" for choice in states.values()):  # modules are called, for all tokens at once
        _check_fits(needed, plan.memory_limit)
        return {}
    fits = plan.memory_limit is None or needed <= plan.memory_limit
    cheaper = sum(cost.work for cost in dense) <= sum(choice.cost.work for choice in states.values())
    return {} if plan.algorithm is None and fits and cheaper else states


def choose_for_writing(
    cross: CrossAttention, latents: Latents, queries: Tokens, tails: Tails, plan: Plan
) -> dict[str, Choice]:
    """Return a choice for each output whose queries are not decoded densely."""
    if plan.always_dense:
        return {}
    models = {
        name: CostModel(cross, _expanded(latents), segment, tails[name]) for name, segment in queries.segments.items()
    }
    choices = {name: choose(model, plan, dense=True) for name, model in models.items()}
    return {name: x for name, x in choices.items() if x is not None and x.algorithm != "dense"}


def _expanded(latents: Latents) -> Float[Tensor, "b n d"]:
    """Return the latents of the whole batch, without a copy."""
    return latents.array.expand(algorithms.batch_of(latents), -1, -1)


def _check_fits(needed: int, limit: float | int | None) -> None:
    """Raise a ValueError that states the smallest limit that works, if the limit is too small."""
    if limit is not None and needed > limit:
        raise ValueError(f"memory limit of {limit / 1e6:.3g} MB: this needs at least {needed / 1e6:.3g} MB")
