"""The decoder: queries attend to the latents, and each output's head maps what they found."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perceivers.core.attention import CrossAttention, Mask
from perceivers.core.config import Config
from perceivers.core.layers import apply_linear, plain_linear
from perceivers.core.tokens import Tokens, token_dtype

Heads = Mapping[str, Callable[[Tensor], Tensor]]
"""The head of each output: [B, O, E] to [B, O, e]."""


class Decoder(nn.Module):
    """Queries attend to the latents once."""

    def __init__(self, config: Config, query_channels: int) -> None:
        super().__init__()
        decoder, latent_channels = config.decoder, config.latents.channels
        self.cross_attention = CrossAttention(query_channels, latent_channels, decoder, decoder.query_residual)
        self.output_channels = decoder.output_channels or query_channels
        self.output = plain_linear(query_channels, self.output_channels) if decoder.output_channels else nn.Identity()

    def forward(
        self,
        queries: Tokens,
        latents: Float[Tensor, "#b n d"],
        heads: Heads,
        plan: Any = None,
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> dict[str, Float[Tensor, "b _ _"]]:
        """Return [B, O, e] of each output, after its head; the mask is True where a latent exists (None: all do)."""
        if plan is not None and not plan.needs_dense(self.cross_attention, latents, queries, self.output, heads, mask):
            write = partial(plan.write, output=self.output, heads=heads)
            return self.cross_attention(queries, latents, compute=write)
        x = self.cross_attention(queries.dense(token_dtype(latents.dtype)), latents, Mask(mask, queries.mask()))
        return apply_heads(x, queries, self.output, heads)

    def attention_map(
        self, queries: Tokens, latents: Float[Tensor, "#b n d"], mask: Bool[Tensor, "b n"] | None = None
    ) -> dict[str, Float[Tensor, "b h _ n"]]:
        """Return how much each query of each output attends to each latent."""
        weights = partial(CrossAttention.weights, mask=Mask(mask, queries.mask()))
        found = self.cross_attention(queries.dense(token_dtype(latents.dtype)), latents, compute=weights)
        return queries.split(found, dim=-2)


class AverageDecoder(nn.Module):
    """The head of the original Perceiver: every query gets the mean of the latents (official `ProjectionDecoder`)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.output_channels = config.latents.channels

    def forward(
        self,
        queries: Tokens,
        latents: Float[Tensor, "#b n d"],
        heads: Heads,
        plan: Any = None,
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> dict[str, Float[Tensor, "b _ _"]]:
        """Return [B, O, e] of each output, after its head; there is nothing to plan."""
        mean = latents.mean(dim=1, keepdim=True) if mask is None else mean_of(latents, mask)
        return {name: heads[name](mean.expand(-1, q.num_tokens, -1)) for name, q in queries.segments.items()}


def mean_of(latents: Float[Tensor, "b n d"], exist: Bool[Tensor, "b n"]) -> Float[Tensor, "b 1 d"]:
    """Return the mean of the latents that exist; 0 where none does."""
    exist = exist[..., None]
    return torch.where(exist, latents, 0).sum(1, keepdim=True) / exist.sum(1, keepdim=True).clamp(min=1)


def apply_heads(
    x: Float[Tensor, "b _ f"], queries: Tokens, output: nn.Module, heads: Heads
) -> dict[str, Float[Tensor, "b _ _"]]:
    """Return decoded queries behind the map that all outputs share and the head of each."""
    return {name: apply_linear(heads[name], part) for name, part in queries.split(apply_linear(output, x)).items()}
