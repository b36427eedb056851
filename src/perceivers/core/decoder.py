"""The decoder: queries attend to the latents, and each output's head maps the result."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from perceivers.core.attention import Mask
from perceivers.core.blocks import CrossAttention, SelfAttention
from perceivers.core.config import Config
from perceivers.core.latents import Latents
from perceivers.core.layers import apply_linear, norm_layer, plain_linear
from perceivers.core.tokens import Segment, Tokens, token_dtype

Written = dict[str, Float[Tensor, "b _ _"]]
Heads = Mapping[str, Callable[[Tensor], Tensor]]
"""The head of each output: [B, O, E] to [B, O, e]."""


class Decoder(nn.Module):
    """Decoder whose queries attend to the latents, in one layer or several."""

    def __init__(self, config: Config, query_channels: int) -> None:
        super().__init__()
        decoder, d, f = config.decoder, config.latents.channels, query_channels
        layers, self.mixes_queries = range(decoder.num_layers), decoder.self_attention
        self.self_attentions = nn.ModuleList(SelfAttention(f, decoder, d) for _ in layers if decoder.self_attention)
        blocks = [CrossAttention(f, d, decoder, decoder.query_residual, condition=d) for _ in layers]
        self.earlier, self.cross_attention = nn.ModuleList(blocks[:-1]), blocks[-1]
        self.norm = norm_layer(f, decoder) if decoder.final_norm else None
        self.output_channels = decoder.output_channels or f
        self.output = plain_linear(f, self.output_channels) if decoder.output_channels else nn.Identity()

    def forward(self, queries: Tokens, latents: Latents, heads: Heads, plan: Any = None) -> Written:
        """Return [B, O, e] of each output, after its head."""
        if self.mixes_queries and plan is not None and plan.memory_limit is not None:
            raise ValueError("decoder.self_attention: queries attend to one another, all at once: give no memory limit")
        if self.earlier and plan is not None and plan.memory_limit is not None:
            return plan.in_blocks(self, queries, latents, heads)
        return self.last(self.before_last(queries, latents), latents, heads, plan)

    def last(self, queries: Tokens, latents: Latents, heads: Heads, plan: Any = None) -> Written:
        """Return [B, O, e] of each output, from the queries as the last layer takes them."""
        cross = self.cross_attention
        if plan is not None and not plan.needs_dense(cross, latents, queries, self.tail, heads):
            return cross(queries, latents, compute=partial(plan.write, output=self.tail, heads=heads))
        return apply_heads(cross(*writing_arguments(cross, queries, latents)), queries, self.tail, heads)

    @property
    def tail(self) -> tuple[nn.Module, ...]:
        """The modules behind the last block that all outputs share."""
        return (self.output,) if self.norm is None else (self.norm, self.output)

    def attention_map(self, queries: Tokens, latents: Latents) -> dict[str, Float[Tensor, "b h o n"]]:
        """Return the attention map of the last layer, by output."""
        queries, cross = self.before_last(queries, latents), self.cross_attention
        return queries.split(cross.attention_map(*writing_arguments(cross, queries, latents)), dim=-2)

    def before_last(self, queries: Tokens, latents: Latents) -> Tokens:
        """Return the queries as the last cross-attention takes them."""
        earlier: Any = self.earlier
        for number, layer in enumerate(earlier):
            queries = self._among_queries(number, queries, latents)
            parts = queries.split(layer(*writing_arguments(layer, queries, latents)))
            queries = Tokens({name: as_array(x, parts[name]) for name, x in queries.segments.items()})
        return self._among_queries(-1, queries, latents)

    def _among_queries(self, number: int, queries: Tokens, latents: Latents) -> Tokens:
        """Return the queries after those of each output have attended to one another, if they do."""
        if not self.mixes_queries:
            return queries
        own: Any = self.self_attentions
        layer, dtype = own[number], token_dtype(latents.array.dtype)
        found = {}
        for name, x in queries.segments.items():
            array = layer(x.dense(dtype), Mask(keys=x.mask), layer.rotation(x, x), latents.condition)
            found[name] = as_array(x, array)
        return Tokens(found)


class LatentDecoder(nn.Module):
    """Decoder without attention, for queries that are the latents, or their mean (official `ProjectionDecoder`)."""

    mixes_queries = False

    def __init__(self, config: Config, query_channels: int) -> None:
        super().__init__()
        self.output_channels = query_channels

    def forward(self, queries: Tokens, latents: Latents, heads: Heads, plan: Any = None) -> Written:
        """Return [B, O, e] of each output, after its head; the plan has no effect."""
        return {name: heads[name](q.dense(latents.array.dtype)) for name, q in queries.segments.items()}


def writing_arguments(cross: CrossAttention, queries: Tokens, latents: Latents) -> tuple[Any, ...]:
    """Return the arguments of a dense cross-attention of queries to latents."""
    array, mask = queries.dense(token_dtype(latents.array.dtype)), Mask(latents.mask, queries.mask())
    return array, latents.array, mask, cross.rotation(queries, latents.segment), latents.condition


def apply_heads(x: Tensor, queries: Tokens, tail: tuple[nn.Module, ...], heads: Heads) -> Written:
    """Return decoded queries after the modules that all outputs share and each output's head."""
    for module in tail:
        x = apply_linear(module, x)
    return {name: apply_linear(heads[name], part) for name, part in queries.split(x).items()}


def as_array(segment: Segment, array: Float[Tensor, "b m c"]) -> Segment:
    """Return the segment with an array in place of its parts."""
    return Segment(array, mask=segment.mask, coordinates=segment.coordinates, grid=segment.grid, extent=segment.extent)
