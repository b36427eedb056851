"""The plan of a model for an input, without running it: each cross-attention's algorithm, and all costs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from perceivers.core.decoder import Decoder
from perceivers.core.fast.algorithms import Algorithm
from perceivers.core.fast.cost_model import CostModel
from perceivers.core.fast.op_counts import Cost
from perceivers.core.fast.planner import Choice, Plan, choose_for_reading, choose_for_writing
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.reading import Encoded
from perceivers.core.trunk import Read, Trunk


@dataclass(frozen=True)
class PlannedAttention:
    """Plan of a cross-attention with the tokens of one input or the queries of one output."""

    name: str
    """Name, such as "read image" or "write flow"."""
    tokens: int
    """Number of tokens or queries."""
    algorithm: Algorithm
    """The chosen algorithm."""
    block_size: int
    """Number of tokens in a block; all tokens in the dense algorithm."""
    costs: Mapping[Algorithm, Cost]
    """The cost of every algorithm that is possible."""


def attention_plan(
    model: PerceiverIO,
    raw: Mapping[str, Any] | Tensor,
    points: Mapping[str, Any] | None = None,
    memory_limit: int | str | None = None,
    algorithm: Algorithm | None = None,
) -> list[PlannedAttention]:
    """Return the plan of each cross-attention in `model(raw, points, memory_limit, algorithm)`.

    Only the shapes of `raw` matter, so tensors on the device "meta" are enough.
    """
    plan = Plan(model.memory_limit if memory_limit is None else memory_limit, algorithm)
    found = []
    if not isinstance(model.trunk, Trunk):
        raise ValueError("a transformer has one algorithm of attention, the dense one: there is nothing to plan")
    # Make the tokens, with copied buffers: a batch norm in training mode would update its statistics.
    buffers = {name: buffer.clone() for name, buffer in model.input_adapter.named_buffers()}
    tensors = model.schema.guard.tensors(raw, next(model.parameters()).device)
    tokens, segments = functional_call(model.input_adapter, buffers, (tensors,))
    # Plan each read, input by input.
    tokens, start = model._started(tokens)
    for number, read in enumerate(stage for stage in model.trunk.stages if isinstance(stage, Read)):
        whole = plan.needs_dense(read.cross_attention, start, tokens)
        choices = {} if whole else choose_for_reading(read.cross_attention, start, tokens, plan)
        for name, segment in tokens.segments.items():
            costs = CostModel(read.cross_attention, start.array, segment, None)
            found.append(_planned(f"read {name}" + (f" ({number + 1})" if number else ""), costs, choices.get(name)))
    # Plan the decoder, output by output, with latents of the right shape.
    batch = max(segment.batch_size for segment in tokens.segments.values())
    if isinstance(decoder := model.decoder, Decoder):
        latents = replace(start, array=torch.empty_like(start.array.expand(max(batch, len(start.array)), -1, -1)))
        encoded = Encoded.of(latents, segments)
        queries = model.output_query(encoded, model.schema.guard.points(points, latents.array.device))
        heads = model.output_adapter.heads(model.input_adapter.adapters)
        tails = {name: (*decoder.tail, heads[name]) for name in queries.segments}
        earlier: Any = decoder.earlier
        for number, layer in enumerate(earlier):
            for name, segment in queries.segments.items():
                found.append(
                    _planned(f"write {name} ({number + 1})", CostModel(layer, latents.array, segment, ()), None)
                )
        whole = plan.needs_dense(decoder.cross_attention, latents, queries, decoder.tail, heads)
        choices = {} if whole else choose_for_writing(decoder.cross_attention, latents, queries, tails, plan)
        for name, segment in queries.segments.items():
            costs = CostModel(decoder.cross_attention, latents.array, segment, tails[name])
            found.append(_planned(f"write {name}", costs, choices.get(name)))
    return found


def _planned(name: str, model: CostModel, choice: Choice | None) -> PlannedAttention:
    tokens = model.segment.num_tokens
    if choice is None:
        return PlannedAttention(name, tokens, "dense", tokens, model.costs())
    return PlannedAttention(name, tokens, choice.algorithm, min(choice.block_size, tokens), choice.costs)
