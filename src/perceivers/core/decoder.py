"""Queries write from latents."""

from collections.abc import Mapping
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perceivers.core import orders
from perceivers.core.attention import CrossAttention, Mask
from perceivers.core.config import Config
from perceivers.core.initialisers import plain_linear
from perceivers.core.linear_map import apply_linear, is_hooked
from perceivers.core.plan import FASTEST, Plan, check_dense, plan_writing
from perceivers.core.tokens import Tokens, token_dtype


class Decoder(nn.Module):
    """Queries attend to the latents once; each output's head turns its rows into numbers."""

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
        heads: Mapping[str, nn.Module],
        plan: Plan = FASTEST,
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> dict[str, Float[Tensor, "b _ _"]]:
        """Rows [B, O, e] of each output, after its head; the mask is True where a latent exists (None: all do)."""
        if mask is not None or plan.always_dense or is_hooked(self.cross_attention, sharding=False):
            if plan.is_limited:
                check_dense(self.cross_attention, latents, queries, plan, self._tails(heads))
            x = self.cross_attention(queries.dense(token_dtype(latents.dtype)), latents, Mask(mask, queries.mask()))
            return _headed(x, queries, self.output, heads)
        write = partial(_write, output=self.output, heads=heads, plan=plan)
        return self.cross_attention(queries, latents, algorithm=write)

    def _tails(self, heads: Mapping[str, nn.Module]) -> dict[str, tuple[nn.Module, nn.Module]]:
        """Return the modules that follow the block, by output."""
        return {name: (self.output, head) for name, head in heads.items()}

    def attention_map(
        self, queries: Tokens, latents: Float[Tensor, "#b n d"], mask: Bool[Tensor, "b n"] | None = None
    ) -> dict[str, Float[Tensor, "b h _ n"]]:
        """How much each query of each output takes from each latent."""
        weights = partial(CrossAttention.weights, mask=Mask(mask, queries.mask()))
        found = self.cross_attention(queries.dense(token_dtype(latents.dtype)), latents, algorithm=weights)
        return queries.split(found, dim=-2)


def _write(
    cross: CrossAttention,
    queries: Tokens,
    latents: Float[Tensor, "#b n d"],
    output: nn.Module,
    heads: Mapping[str, nn.Module],
    plan: Plan,
) -> dict[str, Float[Tensor, "b _ _"]]:
    """Rows [B, O, e] of each output after its head, each by the cheapest algorithm."""
    tails = {name: (output, heads[name]) for name in queries.segments}
    choices = plan_writing(cross, latents, queries, tails, plan)
    rows = {
        name: orders.write(cross, queries.segments[name], latents, tails[name], choice.order, choice.block_size)
        for name, choice in choices.items()
    }
    dense = Tokens({name: segment for name, segment in queries.segments.items() if name not in rows})
    if dense.segments:
        x = cross.dense(dense.dense(token_dtype(latents.dtype)), latents, Mask(queries=dense.mask()))
        rows |= _headed(x, dense, output, heads)
    return {name: rows[name] for name in queries.segments}


def _headed(
    x: Float[Tensor, "b _ f"], queries: Tokens, output: nn.Module, heads: Mapping[str, nn.Module]
) -> dict[str, Float[Tensor, "b _ _"]]:
    """Decoded queries after the map that all outputs share and after the head of each."""
    return {name: apply_linear(heads[name], part) for name, part in queries.split(apply_linear(output, x)).items()}


class AverageDecoder(nn.Module):
    """The head of the original Perceiver: every query gets the mean of the latents (official `ProjectionDecoder`)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.output_channels = config.latents.channels

    def forward(
        self,
        queries: Tokens,
        latents: Float[Tensor, "#b n d"],
        heads: Mapping[str, nn.Module],
        plan: Plan = FASTEST,
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> dict[str, Float[Tensor, "b _ _"]]:
        """Rows [B, O, e] of each output, after its head; there is nothing to limit."""
        mean = latents.mean(dim=1, keepdim=True) if mask is None else mean_of(latents, mask)
        return {name: heads[name](mean.expand(-1, q.num_tokens, -1)) for name, q in queries.segments.items()}


def mean_of(latents: Float[Tensor, "b n d"], exist: Bool[Tensor, "b n"]) -> Float[Tensor, "b 1 d"]:
    """Mean of the latents that exist; 0 where none does."""
    exist = exist[..., None]
    return torch.where(exist, latents, 0).sum(1, keepdim=True) / exist.sum(1, keepdim=True).clamp(min=1)
