"""Which order each cross-attention takes: the cheapest by a count of its work that fits into the memory allowed.

A function of shapes, kind of device and memory limit alone, never of free memory or of clocks: the same everywhere.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perceivers.core.attention import CrossAttention
from perceivers.core.orders import Order, is_linear
from perceivers.core.positions import AxisTables
from perceivers.core.tokens import Segment, Tokens

ELEMENT, EXPONENTIAL = 30, 60
"""What a pass over a number, and an exponential, cost in multiply-adds of a product (measured on a CPU)."""

BLOCK_WORK = 10_000_000
"""What a block costs beside its work, in multiply-adds."""

BLOCK_SCORES = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Scores of a block where no limit asks for fewer: so many stay in a cache, or fill a device."""

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


FASTEST = Plan()


@dataclass(frozen=True)
class Cost:
    """What an order takes for one segment."""

    work: int
    """Multiply-adds of its products, and everything else as the multiply-adds that take as long."""
    multiply_adds: int
    """Those of its products alone."""
    token_bytes: int
    """Memory of a token of a block."""
    fixed_bytes: int
    """Memory that does not depend on the block."""
    unit: int
    """Tokens of the smallest block."""

    def bytes(self, block_size: int) -> int:
        """Memory beside inputs and outputs."""
        return self.fixed_bytes + max(block_size, self.unit) * self.token_bytes


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
        attention = self.cross.attention
        orders: list[Order] = ["dense"]
        if not (attention.training and (attention.dropout or (self.tail is not None and self.cross.dropout.p))):
            orders += ["projected", "absorbed"]
            if self.width and not (self.tail is not None and self.cross.query_residual):
                orders.append("separable")
        if self.tail is not None and not self.cross.query_residual and is_linear(self.tail):
            folded: dict[Order, Order] = {"absorbed": "absorbed-folded", "separable": "separable-folded"}
            orders += [folded[order] for order in orders if order in folded]
        return {order: self._cost(order) for order in orders}

    @property
    def width(self) -> int:
        """Tokens of a row, where tokens are sums of functions of row and column; else 0."""
        positions = self.segment.positions
        separable = isinstance(positions, AxisTables) and len(positions.tables) > 1 and not self.segment.positions_added
        return len(positions.tables[-1]) if separable and isinstance(positions, AxisTables) else 0

    def _cost(self, order: str) -> Cost:
        attention, segment = self.cross.attention, self.segment
        samples = max(len(self.latents), segment.batch_size)
        tokens, latents = segment.num_tokens, self.latents.shape[-2]
        questions = attention.num_heads * latents
        qk, v = attention.query.out_features, attention.value.out_features
        channels = (attention.key if self.tail is None else attention.query).in_features
        own = segment.own_channels
        content = 0 if segment.content is None else segment.content.shape[-1]
        rows = min(ONE_HOT, tokens // self.width) if self.width else 0

        # Of a token: products, passes over numbers, numbers held. First itself and its scores, then what it finds.
        if order.startswith("separable"):
            compact = content + rows + 2
            products, passes, held = questions * compact, 3 * content + 2 * questions, compact
            if segment.projection is not None:
                products, passes, held = products + channels * (content + rows), passes + 3 * channels, held + channels
            fixed = latents * qk * channels + questions * own * self.width
            kept = questions * (2 * own + 2 * self.width)
        else:
            made = own * channels if segment.projection is not None else 0
            products, passes, held = made, 4 * channels, 2 * channels + (own if made else 0)
            if order.startswith("absorbed"):
                products, fixed, kept = (
                    products + questions * channels,
                    latents * qk * channels,
                    3 * questions * channels,
                )
            else:
                products, held = products + (channels + latents) * qk, held + qk + v
                fixed, kept = 0, latents * (qk + v)
        passes, held = passes + 3 * questions, held + 2 * questions
        if self.tail is None:
            if order == "separable":
                products, passes = products + questions * compact, passes + 2 * questions
            else:
                products += questions * channels if order == "absorbed" else (channels + latents) * v
            fixed += latents * v * channels if order in ("absorbed", "separable") else 0
        else:
            hidden, last = self.cross.mlp.hidden.out_features, [m for m in self.tail if isinstance(m, nn.Linear)]
            written = last[-1].out_features if last else channels
            if order.endswith("folded"):
                columns = hidden + min(channels, v + 1) + written
                products, held = products + questions * columns + hidden * written, held + columns + hidden
                fixed, kept = fixed + channels * v * v + latents * v * columns, kept + questions * columns
            else:
                products += 2 * channels * hidden + sum(m.weight.numel() for m in last)
                products += questions * channels if order in ("absorbed", "separable") else (latents + channels) * v
                passes, held = passes + 8 * channels, held + 4 * channels + hidden + written
                fixed, kept = fixed + latents * v * channels, kept + questions * channels

        item = max(self.latents.dtype.itemsize, 4)
        multiply_adds = samples * (tokens * products + fixed)
        work = multiply_adds + samples * tokens * (ELEMENT * passes + EXPONENTIAL * questions)
        if order == "dense":
            return Cost(int(work), int(multiply_adds), item * samples * held, 0, tokens)
        work += samples * BLOCK_WORK * math.ceil(tokens / self.default_block(order))
        factor = GRADIENT if torch.is_grad_enabled() else 1
        unit = self.width if order.startswith("separable") else 1
        return Cost(int(work), int(multiply_adds), item * factor * held, item * factor * kept, unit)

    def default_block(self, order: str) -> int:
        """Tokens of a block where no limit asks for fewer."""
        questions = self.cross.attention.num_heads * self.latents.shape[-2]
        size = max(BLOCK_SCORES.get(self.latents.device.type, 1 << 21) // questions, 1)
        return min(size, max(ONE_HOT * self.width, size // 16)) if order.startswith("separable") else size

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
            raise ValueError(f"memory limit of {limit / 1e6:.3g} MB: this needs at least {least / 1e6:.3g} MB")
        order = min(fitting, key=lambda name: fitting[name].work)
        cost = fitting[order]
        if order == "dense":
            return Choice(order, cost.unit, costs)
        room = (limit - cost.fixed_bytes) / cost.token_bytes
        return Choice(order, max(int(min(self.default_block(order), room)), cost.unit), costs)


def plan_states(cross: CrossAttention, latents: Tensor, tokens: Tokens, plan: Plan) -> dict[str, Choice] | None:
    """A choice for each segment that makes a state to be added up; None where dropout of weights forbids it."""
    choices = {}
    for name, segment in tokens.segments.items():
        choice = Case(cross, latents, segment, None).choose(plan, dense=False)
        if choice is None:
            return None
        choices[name] = choice
    return choices


def plan_reading(cross: CrossAttention, latents: Tensor, tokens: Tokens, plan: Plan) -> dict[str, Choice]:
    """A choice for each segment: dense for all or for none, since its softmax runs over all of them."""
    dense = {
        name: Choice("dense", segment.num_tokens, Case(cross, latents, segment, None).costs())
        for name, segment in tokens.segments.items()
    }
    if plan.order == "dense" or torch.compiler.is_compiling():
        return dense
    states = plan_states(cross, latents, tokens, plan)
    if states is None:
        return dense
    fits = plan.memory_limit is None or sum(choice.bytes for choice in dense.values()) <= plan.memory_limit
    cheaper = sum(choice.cost.work for choice in dense.values()) <= sum(choice.cost.work for choice in states.values())
    return dense if plan.order is None and fits and cheaper else states


def plan_writing(
    cross: CrossAttention,
    latents: Tensor,
    queries: Tokens,
    tails: Mapping[str, Sequence[nn.Module]],
    plan: Plan,
) -> dict[str, Choice]:
    """A choice for each output's queries."""
    plan = Plan(order="dense") if torch.compiler.is_compiling() else plan
    choices = {}
    for name, segment in queries.segments.items():
        choice = Case(cross, latents, segment, tails[name]).choose(plan, dense=True)
        assert choice is not None
        choices[name] = choice
    return choices
