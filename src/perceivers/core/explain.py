"""What a model would do with an input, without doing it: the order of each cross-attention, and what others cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from perceivers.core.counting import Cost
from perceivers.core.decoder import Decoder
from perceivers.core.interfaces import Points
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.plan import Case, Choice, Order, Plan, plan_reading, plan_writing
from perceivers.core.reading import Encoded
from perceivers.core.trunk import Read, Resampler


@dataclass(frozen=True)
class Explained:
    """A cross-attention with the tokens of one input or the queries of one output."""

    name: str
    """Such as "read image" or "write flow"."""
    tokens: int
    """Inputs or queries."""
    order: Order
    """The order that it takes."""
    block_size: int
    """Tokens of a block; all of them in the dense order."""
    costs: Mapping[Order, Cost]
    """Of every order that is possible."""


def explain(
    model: PerceiverIO,
    raw: Mapping[str, Any] | Tensor,
    points: Mapping[str, Points] | None = None,
    memory_limit: int | None = None,
    order: Order | None = None,
) -> list[Explained]:
    """What `model(raw, points, memory_limit, order)` would do; of raw only shapes matter, so "meta" tensors serve."""
    plan = Plan(model.memory_limit if memory_limit is None else memory_limit, order)
    found = []
    if not isinstance(model.trunk, Resampler):
        raise ValueError("a transformer has one order of attention, the dense one: there is nothing to explain")
    # A batch norm in training mode would move its statistics.
    buffers = {name: buffer.clone() for name, buffer in model.input_adapter.named_buffers()}
    tokens, own = functional_call(model.input_adapter, buffers, (raw,))
    latents = model.trunk.latents[None]
    for number, read in enumerate(stage for stage in model.trunk.stages if isinstance(stage, Read)):
        choices = plan_reading(read.cross_attention, latents, tokens, plan)
        for name, segment in tokens.segments.items():
            case = Case(read.cross_attention, latents, segment, None)
            found.append(_explained(f"read {name}" + (f" ({number + 1})" if number else ""), case, choices.get(name)))
    batch = max(segment.batch_size for segment in tokens.segments.values())
    if isinstance(decoder := model.decoder, Decoder):
        latents = torch.empty_like(latents.expand(batch, -1, -1))
        queries, heads = model.output_query(Encoded(latents, own), points or {}, None), model.output_adapter.heads
        tails = {name: (decoder.output, heads[name]) for name in queries.segments}
        choices = plan_writing(decoder.cross_attention, latents, queries, tails, plan)
        for name, segment in queries.segments.items():
            case = Case(decoder.cross_attention, latents, segment, tails[name])
            found.append(_explained(f"write {name}", case, choices.get(name)))
    return found


def _explained(name: str, case: Case, choice: Choice | None) -> Explained:
    tokens = case.segment.num_tokens
    if choice is None:
        return Explained(name, tokens, "dense", tokens, case.costs())
    return Explained(name, tokens, choice.order, min(choice.block_size, tokens), choice.costs)
