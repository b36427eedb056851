"""The decoder: queries attend to the latents, and each output's head maps the result."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.core.attention import CrossAttention, Mask
from perceivers.core.config import Config
from perceivers.core.layers import apply_linear, plain_linear
from perceivers.core.tokens import Tokens, token_dtype

Latents = Float[Tensor, "#b n d"]
Heads = Mapping[str, Callable[[Tensor], Tensor]]
"""The head of each output: [B, O, E] to [B, O, e]."""


class Decoder(nn.Module):
    """Decoder whose queries attend to the latents once."""

    def __init__(self, config: Config, query_channels: int) -> None:
        super().__init__()
        decoder, latent_channels = config.decoder, config.latents.channels
        self.cross_attention = CrossAttention(query_channels, latent_channels, decoder, decoder.query_residual)
        self.output_channels = decoder.output_channels or query_channels
        self.output = plain_linear(query_channels, self.output_channels) if decoder.output_channels else nn.Identity()

    def forward(
        self, queries: Tokens, latents: Latents, heads: Heads, plan: Any = None, mask: Tensor | None = None
    ) -> dict[str, Float[Tensor, "b _ _"]]:
        """Return [B, O, e] of each output, after its head; the mask [B, N] is True where a latent exists."""
        if plan is not None and not plan.needs_dense(self.cross_attention, latents, queries, self.output, heads, mask):
            write = partial(plan.write, output=self.output, heads=heads)
            return self.cross_attention(queries, latents, compute=write)
        x = self.cross_attention(queries.dense(token_dtype(latents.dtype)), latents, Mask(mask, queries.mask()))
        return apply_heads(x, queries, self.output, heads)


class AverageDecoder(nn.Module):
    """Decoder of the original Perceiver: every query gets the mean of the latents (official `ProjectionDecoder`)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.output_channels = config.latents.channels

    def forward(
        self, queries: Tokens, latents: Latents, heads: Heads, plan: Any = None, mask: Tensor | None = None
    ) -> dict[str, Float[Tensor, "b _ _"]]:
        """Return [B, O, e] of each output, after its head; the plan has no effect."""
        mean = latents.mean(dim=1, keepdim=True)
        if mask is not None:
            count = mask.sum(1, keepdim=True).clamp(min=1)[..., None]
            mean = torch.where(mask[..., None], latents, 0).sum(1, keepdim=True) / count
        return {name: heads[name](mean.expand(-1, q.num_tokens, -1)) for name, q in queries.segments.items()}


def apply_heads(
    x: Float[Tensor, "b _ f"], queries: Tokens, output: nn.Module, heads: Heads
) -> dict[str, Float[Tensor, "b _ _"]]:
    """Return decoded queries after the map that all outputs share and each output's head."""
    return {name: apply_linear(heads[name], part) for name, part in queries.split(apply_linear(output, x)).items()}
