"""Which order each cross-attention takes: the cheapest by a count of its work that fits into the memory allowed.

A function of shapes, kind of device and memory limit alone, never of free memory or of clocks: the same everywhere.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import get_args

import torch
from torch import Tensor, nn

from perceivers.core.arguments import check_limit
from perceivers.core.attention import LAYER_NORM_EPSILON, MLP, Attention, CrossAttention
from perceivers.core.counting import HALF, RATES, Cost, Count, Rates, Sizes
from perceivers.core.finishing import is_linear, is_shorter_composed
from perceivers.core.joining import check_names
from perceivers.core.linear import is_transformed
from perceivers.core.linear_map import (
    has_plain_tensors,
    is_hooked,
    is_linear_map,
    is_plain_norm,
    is_row_wise,
    linear_shape,
)
from perceivers.core.orders import Order, is_together, kernels_for
from perceivers.core.positions import AxisTables
from perceivers.core.tokens import Segment, Tokens

ONE_HOT = 8
"""Rows of a block of the separable order, about; their one-hot code is part of a product."""

GRADIENT = 3
"""How many times the memory a block takes when it is made again for its gradient."""


@dataclass(frozen=True)
class Plan:
    """What the choice of orders must respect."""

    memory_limit: int | None = None
    """Bytes that an attention may take beside its inputs and outputs; None: take what is fastest."""
    order: Order | None = None
    """Order of every attention that it is possible for; None: the cheapest."""

    def __post_init__(self) -> None:
        if self.order is not None:
            check_names("order", [self.order], get_args(Order))
        check_limit(self.memory_limit)

    @property
    def is_limited(self) -> bool:
        """True if there is a limit to keep; compiled programs have none."""
        return self.memory_limit is not None and not torch.compiler.is_compiling()

    @property
    def always_dense(self) -> bool:
        """True if only the dense algorithm may run: forced, or under a compiler or a transform (vmap, grad)."""
        return self.order == "dense" or torch.compiler.is_compiling() or is_transformed()


FASTEST = Plan()


@dataclass(frozen=True)
class Choice:
    """How a cross-attention treats the tokens of one segment."""

    order: Order
    """The order taken."""
    block_size: int
    """Tokens of a block, about."""
    costs: Mapping[Order, Cost]
    """Of every order that is possible, this one too."""

    @property
    def cost(self) -> Cost:
        """Of the order taken."""
        return self.costs[self.order]

    @property
    def bytes(self) -> int:
        """Memory taken beside inputs and outputs."""
        return self.cost.bytes(self.block_size)


@dataclass(frozen=True)
class Case:
    """A cross-attention, the latents on one side of it, and the segment on the other."""

    cross: CrossAttention
    """The block."""
    latents: Tensor
    """Of them the shape alone."""
    segment: Segment
    """Tokens or queries; of them the shapes alone."""
    tail: Sequence[nn.Module] | None
    """When writing: what follows the block. None: reading."""

    def costs(self) -> dict[Order, Cost]:
        """Of every order that is possible."""
        orders: list[Order] = ["dense"]
        if not self.is_transparent:
            return {"dense": self._cost("dense")}
        if not (self.drops_weights or (self.tail is not None and self.cross.training and self.cross.dropout.p)):
            orders += ["projected", "absorbed"]
            if self.width and not (self.tail is not None and self.cross.query_residual):
                orders.append("separable")
        if self.tail is not None and not self.cross.query_residual and is_linear(self.tail):
            folded: dict[Order, Order] = {"absorbed": "absorbed-folded", "separable": "separable-folded"}
            orders += [folded[order] for order in orders if order in folded]
        return {order: self._cost(order) for order in orders}

    @property
    def drops_weights(self) -> bool:
        """True if attention weights are dropped at random, which only the dense algorithm does."""
        return self.cross.attention.training and self.cross.attention.dropout > 0

    @cached_property
    def is_transparent(self) -> bool:
        """True if the weights of all modules that block-wise algorithms bypass are known, and calls do nothing else."""
        cross = self.cross
        attention, mlp, norms = cross.attention, cross.mlp, (cross.query_norm, cross.token_norm, cross.mlp_norm)
        if (type(attention), type(mlp), type(cross.dropout)) != (Attention, MLP, nn.Dropout):
            return False
        maps = (attention.query, attention.key, attention.value, attention.output, mlp.hidden, mlp.output)
        return (
            not is_hooked(cross, sharding=False)
            and not is_hooked(attention, mlp, cross.dropout, mlp.dropout)
            and type(mlp.dropout) is nn.Dropout
            and all(map(is_linear_map, maps))
            and all(is_plain_norm(x, LAYER_NORM_EPSILON) for x in norms)
            and (self.tail is None or self._is_behind_known(self.tail))
        )

    def _is_behind_known(self, tail: Sequence[nn.Module]) -> bool:
        """Return whether the modules behind the scores can be called block by block, and again for the gradient."""
        cross, behind = self.cross, [part for module in tail for part in module.modules()]
        borrowed = [x for module in behind for x in getattr(module, "borrowed", None) or ()]
        called = (cross.attention.output, cross.mlp_norm, cross.mlp, *tail)
        trained = itertools.chain(borrowed, *(module.parameters() for module in called))
        return (
            not is_hooked(*behind)
            and all(map(is_row_wise, tail))
            and all(map(has_plain_tensors, behind))
            and all(x.is_leaf and type(x) is nn.Parameter for x in borrowed)
            and not any(x._backward_hooks for x in trained)  # these would run for each block, and again for their sum
        )

    @property
    def width(self) -> int:
        """Tokens of a row, where tokens are sums of functions of row and column; else 0."""
        positions = self.segment.positions
        separable = isinstance(positions, AxisTables) and len(positions.tables) > 1 and not self.segment.positions_added
        return len(positions.tables[-1]) if separable and isinstance(positions, AxisTables) else 0

    def default_block(self, order: Order) -> int:
        """Tokens of a block where no limit asks for fewer."""
        numbers, row = self.rates.numbers, self.questions + self.channels
        if self.tail is not None:  # scores are passed over fewer times, and more arrays are as wide as a query
            numbers, row = 2 * numbers, row + 3 * self.channels
        size = max(numbers // row // self.together(order), 1)
        coded = order.startswith("separable") and not self.is_fused(order)
        return min(size, max(ONE_HOT * self.width, size // 16)) if coded else size

    @property
    def rates(self) -> Rates:
        """Of the device."""
        return RATES.get(self.latents.device.type, RATES["cpu"])

    @property
    def samples(self) -> int:
        """Of the batch."""
        return max(len(self.latents), self.segment.batch_size)

    def together(self, order: Order) -> int:
        """Samples that are treated at once, block by block."""
        return self.samples if self.tail is None and is_together(order, self.latents.device) else 1

    def is_fused(self, order: Order) -> bool:
        """Whether a kernel does it whose scores are never written down; the gradient of our own writes them."""
        if self.rates.score is None or self.latents.dtype == torch.float64:
            return False
        return order == "dense" or (self.kernels_for(order) is not None and not torch.is_grad_enabled())

    def kernels_for(self, order: Order) -> ModuleType | None:
        """Our own kernels, where they take part in this order."""
        dtype = torch.promote_types(self.latents.dtype, torch.float32)
        return kernels_for(self.segment, dtype) if self.tail is None and order == "separable" and self.width else None

    @property
    def questions(self) -> int:
        """Columns of scores: latents times heads."""
        return self.cross.attention.num_heads * self.latents.shape[-2]

    @property
    def channels(self) -> int:
        """Width of the tokens."""
        attention = self.cross.attention
        return attention.token_channels if self.tail is None else attention.query_channels

    @cached_property
    def sizes(self) -> Sizes:
        """Of all that takes part."""
        attention, segment = self.cross.attention, self.segment
        content = 0 if segment.content is None else segment.content.shape[-1]
        return Sizes(
            samples=self.samples,
            latents=self.latents.shape[-2],
            questions=self.questions,
            qk=attention.qk_channels,
            v=attention.v_channels,
            channels=self.channels,
            own=segment.own_channels,
            content=content,
            located=segment.positions.num_channels if isinstance(segment.positions, AxisTables) else 0,
            varying=content + 2 + self._coded_rows(),
            width=self.width,
            projected=segment.projection is not None,
        )

    def _coded_rows(self) -> int:
        """Of a block in the separable order, where scores are products with their one-hot code."""
        if not self.width or self.is_fused("separable"):
            return 0
        return min(self.default_block("separable"), self.segment.num_tokens) // self.width

    def _cost(self, order: Order) -> Cost:
        sizes, samples, rates, fused = self.sizes, self.samples, self.rates, self.is_fused(order)
        count = sizes.asking(order) + (sizes.reading(order) if self.tail is None else self._writing(order))
        tokens, item = self.segment.num_tokens, max(self.latents.dtype.itemsize, 4)
        multiply_adds = samples * (tokens * count.products + count.fixed)
        if fused and rates.score is not None:
            faster = rates.half if self.latents.dtype in HALF else 1
            work, score, stored = multiply_adds // faster, rates.score, 0
        else:
            work, score, stored = multiply_adds, rates.element * count.visits + rates.exponential, count.stored
        work += samples * tokens * (rates.element * count.passes + score * sizes.questions)
        if order == "dense":
            held = count.held + stored * sizes.questions
            return Cost(work, multiply_adds, item * samples * held, 0, tokens)
        together, at_once, kernels = self.together(order), self.default_block(order), self.kernels_for(order)
        if kernels is not None:
            own, least = kernels.numbers(self.width, sizes.content)
            count += Count(held=(kernels.BLOCKS - 1) * count.held, kept=least * sizes.questions)
            at_once, stored = at_once * (kernels.BLOCKS if fused else 1), max(stored, own)
        work += samples // together * rates.block * -(-tokens // at_once)
        item *= GRADIENT if torch.is_grad_enabled() else 1
        unit = self.width if order.startswith("separable") else 1
        # The gradient of the content is put together from those of its samples.
        content = self.segment.content
        grown = 2 * content.nbytes if torch.is_grad_enabled() and content is not None and content.requires_grad else 0
        held = together * (count.held + stored * sizes.questions)
        kept = sizes.maps + together * (count.kept - sizes.maps)
        return Cost(work, multiply_adds, item * held, item * kept + grown, unit)

    def _writing(self, order: Order) -> Count:
        """What follows the scores when writing: sums of values, the MLP, the maps behind it."""
        sizes = self.sizes
        hidden = getattr(self.cross.mlp, "hidden_channels", sizes.channels)  # an MLP of another class may not tell
        maps = [linear_shape(module) for module in self.tail or () if is_linear_map(module)]
        written = maps[-1][0] if maps else sizes.channels
        # What is written of several samples is stacked: it is there twice.
        stacked = sizes.samples * self.segment.num_tokens * written if sizes.samples > 1 else 0
        softmax = Count(stored=2, kept=stacked)
        if order.endswith("folded"):
            columns = hidden + min(sizes.channels, sizes.v + 1) + written
            return softmax + Count(
                products=sizes.questions * columns + hidden * written,
                held=columns + 2 * hidden + written,
                fixed=sizes.channels * sizes.v**2 + sizes.latents * sizes.v * columns,
                kept=2 * sizes.questions * columns
                + 2 * (columns + sizes.channels) * (sizes.v + 1)
                + sizes.channels * (sizes.channels + hidden)
                + hidden * written,
            )
        behind = sizes.channels * hidden + sum(map(math.prod, maps))
        rest = softmax + Count(
            products=sizes.channels * hidden, passes=8 * sizes.channels, held=4 * sizes.channels + 2 * hidden + written
        )
        if order in ("dense", "projected"):
            return rest + Count(products=(sizes.latents + sizes.channels) * sizes.v + behind)
        if is_shorter_composed(self.cross, self.tail or ()):
            behind = (sizes.channels + hidden) * written
            rest += Count(passes=-2 * sizes.channels, fixed=sizes.channels * behind, kept=2 * behind)
        columns = sizes.questions * sizes.channels
        return rest + Count(products=columns + behind, fixed=sizes.latents * sizes.v * sizes.channels, kept=2 * columns)

    def choose(self, plan: Plan, dense: bool) -> Choice | None:
        """The cheapest order, or the one that is forced, within the limit; None if none is possible.

        ValueError if none fits.
        """
        costs = self.costs()
        allowed = {order: cost for order, cost in costs.items() if dense or order != "dense"}
        allowed = {plan.order: allowed[plan.order]} if plan.order in allowed else allowed
        if not allowed:
            return None
        limit = math.inf if plan.memory_limit is None else plan.memory_limit
        fitting = {order: cost for order, cost in allowed.items() if cost.bytes(cost.unit) <= limit}
        if not fitting:
            least = min(cost.bytes(cost.unit) for cost in allowed.values())
            raise ValueError(_too_small(limit, least))
        order = min(fitting, key=lambda name: fitting[name].work)
        cost = fitting[order]
        if order == "dense":
            return Choice(order, cost.unit, costs)
        room = (limit - cost.fixed_bytes) / cost.token_bytes
        return Choice(order, max(int(min(self.default_block(order), room)), cost.unit), costs)


def plan_states(cross: CrossAttention, latents: Tensor, tokens: Tokens, plan: Plan) -> dict[str, Choice] | None:
    """A choice for each segment that makes a state to be added up; None where dropout of weights forbids it.

    Dense ones only where the block's weights are not known.
    """
    choices = {}
    for name, segment in tokens.segments.items():
        case = Case(cross, latents, segment, None)
        choice = None if case.drops_weights else case.choose(plan, dense=not case.is_transparent)
        if choice is None:
            return None
        choices[name] = choice
    return choices


def plan_reading(cross: CrossAttention, latents: Tensor, tokens: Tokens, plan: Plan) -> dict[str, Choice]:
    """A choice for each segment; none if all are dense: all are or none, since the softmax runs over all of them."""
    if plan.always_dense:
        return {}
    states = plan_states(cross, latents, tokens, plan)
    if states is None:
        return {}
    dense = [Case(cross, latents, segment, None).costs()["dense"] for segment in tokens.segments.values()]
    needed = sum(cost.bytes(0) for cost in dense)
    fits = plan.memory_limit is None or needed <= plan.memory_limit
    if any(choice.order == "dense" for choice in states.values()):  # modules must be called, for all tokens at once
        if not fits:
            raise ValueError(_too_small(plan.memory_limit, needed))
        return {}
    cheaper = sum(cost.work for cost in dense) <= sum(choice.cost.work for choice in states.values())
    return {} if plan.order is None and fits and cheaper else states


def check_dense(
    cross: CrossAttention,
    latents: Tensor,
    tokens: Tokens,
    plan: Plan,
    tails: Mapping[str, Sequence[nn.Module]] | None = None,
) -> None:
    """ValueError where attention has to be dense and does not fit into the memory allowed."""
    cases = [Case(cross, latents, x, None if tails is None else tails[name]) for name, x in tokens.segments.items()]
    needed = sum(case.costs()["dense"].bytes(0) for case in cases)
    if plan.memory_limit is not None and needed > plan.memory_limit:
        raise ValueError(_too_small(plan.memory_limit, needed))


def _too_small(limit: float | int | None, least: int) -> str:
    return f"memory limit of {(limit or 0) / 1e6:.3g} MB: this needs at least {least / 1e6:.3g} MB"


def plan_writing(
    cross: CrossAttention,
    latents: Tensor,
    queries: Tokens,
    tails: Mapping[str, Sequence[nn.Module]],
    plan: Plan,
) -> dict[str, Choice]:
    """A choice for the queries of each output that is not dense."""
    if plan.always_dense:
        return {}
    cases = {name: Case(cross, latents, segment, tails[name]) for name, segment in queries.segments.items()}
    choices = {name: case.choose(plan, dense=True) for name, case in cases.items()}
    return {name: choice for name, choice in choices.items() if choice is not None and choice.order != "dense"}
