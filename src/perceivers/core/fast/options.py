"""The options of a block, and the algorithms that compute each: the table of the planner, the tests and the docs.

Every algorithm gives the dense one's numbers, so an algorithm that cannot compute an option is never chosen for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from perceivers.core.blocks import CrossAttention
from perceivers.core.fast.algorithms import Algorithm
from perceivers.core.tokens import Segment

READING: tuple[Algorithm, ...] = ("dense", "projected", "absorbed", "separable")
"""Algorithms of reading."""
WRITING: tuple[Algorithm, ...] = (*READING, "absorbed-folded", "separable-folded")
"""Algorithms of writing."""
BY_HEADS: tuple[Algorithm, ...] = ("dense", "projected")
"""Algorithms that compute the heads of every token."""
ASSEMBLED: tuple[Algorithm, ...] = (*BY_HEADS, "absorbed")
"""Algorithms that assemble every token."""


@dataclass(frozen=True)
class Option:
    """An option of a block, and the algorithms that compute it."""

    name: str
    """Name: the field of the config, or what is done with the block."""
    is_used: Callable[[CrossAttention, Segment], bool]
    """Function that returns True if a block uses the option for a segment of tokens or queries."""
    reading: tuple[Algorithm, ...] = READING
    """Algorithms that read with it."""
    writing: tuple[Algorithm, ...] = WRITING
    """Algorithms that write with it."""


OPTIONS = (
    Option("norm: rms", lambda cross, _: not hasattr(cross.query_norm, "bias")),
    Option("qk_norm", lambda cross, _: cross.attention.key_head_norm is not None, BY_HEADS, BY_HEADS),
    Option("rotary", lambda cross, x: _is_rotated(cross, x), BY_HEADS, BY_HEADS),
    Option("rotary, gradients of coordinates", lambda cross, x: _trains_places(cross, x), ("dense",), ("dense",)),
    Option("num_kv_heads", lambda cross, _: cross.attention.num_kv_heads != cross.attention.num_heads),
    Option("gated", lambda cross, _: cross.mlp is not None and cross.mlp.gated),
    Option("widening_factor: 0", lambda cross, _: cross.mlp is None),
    Option("layer_scale", lambda cross, _: cross.attention_scale is not None),
    Option("conditioned", lambda cross, _: cross.modulation_map is not None),
    Option("attend_latents", lambda cross, _: cross.attends_queries),
    Option("query_residual", lambda cross, _: cross.query_residual, READING, ASSEMBLED),
    Option("dropout, in training", lambda cross, _: cross.training and cross.dropout.p > 0, READING, ("dense",)),
    Option("stochastic_depth, in training", lambda cross, _: _skips(cross), READING, ("dense",)),
    Option("attention_dropout, in training", lambda cross, _: drops_weights(cross), ("dense",), ("dense",)),
)
"""The options, each with the algorithms that compute it; biases and activations make no difference."""


def computing(cross: CrossAttention, segment: Segment, writing: bool) -> list[Algorithm]:
    """Return the algorithms that compute all options that a block uses for a segment."""
    used = [option for option in OPTIONS if option.is_used(cross, segment)]
    found = WRITING if writing else READING
    return [name for name in found if all(name in (x.writing if writing else x.reading) for x in used)]


def drops_weights(cross: CrossAttention) -> bool:
    """Return whether attention weights are dropped at random, which only the dense algorithm does."""
    return cross.attention.training and cross.attention.dropout > 0


def _is_rotated(cross: CrossAttention, segment: Segment) -> bool:
    return cross.attention.rotary is not None and segment.coordinates is not None


def _trains_places(cross: CrossAttention, segment: Segment) -> bool:
    along = segment.coordinates.values() if isinstance(segment.coordinates, Mapping) else ()
    return _is_rotated(cross, segment) and any(x.requires_grad for x in along)


def _skips(cross: CrossAttention) -> bool:
    return cross.training and cross.skip_prob > 0
