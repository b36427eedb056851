"""The two blocks built on attention, dense: all tokens at once. The reference for every other algorithm.

    x = q + attention(norm q, norm tokens);     x + MLP(norm x)

A condition scales and shifts what enters a branch (attention, MLP) and gates what leaves it: 0 is the identity.
Letters: B batch, T queries, S keys, H heads, K channels of a condition.
Source: `CrossAttention`, `SelfAttention`, `MLP` of the official perceiver.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.core.attention import Attention, Mask, attention_weights
from perceivers.core.block_config import BlockConfig
from perceivers.core.coordinates import Rotation
from perceivers.core.latents import Latents
from perceivers.core.layers import (
    apply_linear,
    apply_norm,
    attention_linear,
    norm_layer,
    plain_linear,
    without_autocast,
)
from perceivers.core.reading import NO_SCORE, SoftmaxState
from perceivers.core.tokens import concatenated


def quick_gelu(x: Tensor) -> Tensor:
    """Return x * sigmoid(1.702 x), a coarse approximation of GELU that some third-party checkpoints use."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # the default of jax.nn.gelu, used by all released models
    "gelu_erf": F.gelu,  # used by ports to PyTorch; differs by at most 5e-4
    "quick_gelu": quick_gelu,  # this and the next two: for third-party models
    "relu": F.relu,
    "squared_relu": lambda x: F.relu(x).square(),
    "silu": F.silu,
}


class MLP(nn.Module):
    """Two linear maps with an activation in between, which may be gated."""

    def __init__(self, channels: int, config: BlockConfig) -> None:
        super().__init__()
        self.hidden_channels, self.gated = config.widening_factor * channels, config.gated
        width = self.hidden_channels * (2 if config.gated else 1)
        self.hidden = attention_linear(channels, width, config.mlp_bias)
        self.output = attention_linear(self.hidden_channels, channels, config.mlp_bias)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """Return x through the MLP, in the same shape."""
        return self.dropout(apply_linear(self.output, self.activated(apply_linear(self.hidden, x))))

    def activated(self, hidden: Float[Tensor, "*b w"]) -> Float[Tensor, "*b h"]:
        """Return the activation of hidden values; if gated, their first half times the activation of the second."""
        if not self.gated:
            return self.activation(hidden)
        values, gates = hidden.chunk(2, -1)
        return values * self.activation(gates)


@dataclass(frozen=True)
class Modulation:
    """How a condition changes one branch of a block; all 0: not at all."""

    scale: Float[Tensor, "#b 1 c"]
    shift: Float[Tensor, "#b 1 c"]
    gate: Float[Tensor, "#b 1 c"]

    def enter(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """Return what enters the branch."""
        return x * (1 + self.scale) + self.shift

    def of_sample(self, number: int) -> "Modulation":
        """Return the modulation of one sample, as a batch of one."""
        return Modulation(*(x[number % len(x)][None] for x in (self.scale, self.shift, self.gate)))


class Modulations(nn.Module):
    """A linear map from the condition to the modulations of a block's branches; it starts at 0."""

    def __init__(self, condition_channels: int, channels: int, branches: int) -> None:
        super().__init__()
        self.branches, self.map = branches, plain_linear(condition_channels, 3 * branches * channels, zero=True)

    def forward(self, condition: Float[Tensor, "#b k"]) -> list[Modulation]:
        """Return the modulation of each branch."""
        parts = self.map(condition)[:, None].chunk(3 * self.branches, -1)
        return [Modulation(*parts[first : first + 3]) for first in range(0, len(parts), 3)]


class Exit(nn.Module):
    """The end of a branch: the gate of its modulation, LayerScale, and stochastic depth."""

    def __init__(self, channels: int, config: BlockConfig, residual: bool) -> None:
        super().__init__()
        self.scale = None if config.layer_scale is None else nn.Parameter(torch.full((channels,), config.layer_scale))
        self.skip_prob = config.stochastic_depth if residual else 0.0

    def forward(self, x: Float[Tensor, "b t c"], modulation: Modulation | None) -> Float[Tensor, "b t c"]:
        """Return what leaves the branch."""
        x = x if modulation is None else x * (1 + modulation.gate)
        x = x if self.scale is None else x * self.scale
        if not (self.training and self.skip_prob):
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.skip_prob
        return torch.where(kept, x / (1 - self.skip_prob), 0)


class Block(nn.Module):
    """The branches that both kinds of block have: attention, whose norms the block adds, and an MLP."""

    attention: Attention
    dropout: nn.Dropout
    modulations: Modulations | None
    attention_exit: Exit
    mlp_norm: nn.Module | None
    mlp: MLP | None
    mlp_exit: Exit | None

    def add_branches(
        self, attention: Attention, config: BlockConfig, residual: bool, condition_channels: int | None
    ) -> None:
        """Add the modules behind the norms of the attention."""
        channels, has_mlp = attention.query_channels, config.widening_factor > 0
        self.attention, self.dropout = attention, nn.Dropout(config.dropout)
        self.attention_exit = Exit(channels, config, residual)
        self.mlp_norm = norm_layer(channels, config.norm, config.norm_epsilon) if has_mlp else None
        self.mlp = MLP(channels, config) if has_mlp else None
        self.mlp_exit = Exit(channels, config, residual=True) if has_mlp else None
        self.modulations = None
        if config.conditioned and condition_channels is not None:
            self.modulations = Modulations(condition_channels, channels, 2 if has_mlp else 1)

    def modulations_of(self, condition: Float[Tensor, "#b k"] | None) -> tuple[Modulation | None, Modulation | None]:
        """Return the modulations of attention and MLP; None where the block is not conditioned."""
        if self.modulations is None or condition is None:
            return None, None
        of_attention, *of_mlp = self.modulations(condition)
        return of_attention, of_mlp[0] if of_mlp else None

    def rotation(self, queries: Any, tokens: Any) -> Rotation | None:
        """Return the rotation between queries and keys (`Tokens`, `Segment`, `Latents`); None: there is none."""
        rotary = self.attention.rotary
        if rotary is None:
            return None
        dtype = self.attention.query.weight.dtype
        return rotary.between(queries.located(rotary.axes), tokens.located(rotary.axes), dtype)

    def through_mlp(self, x: Float[Tensor, "b t c"], modulation: Modulation | None) -> Float[Tensor, "b t c"]:
        """Return x plus the result of the MLP, if there is one."""
        if self.mlp is None or self.mlp_norm is None or self.mlp_exit is None:
            return x
        normed = self.mlp_norm(x)
        return x + self.mlp_exit(self.mlp(normed if modulation is None else modulation.enter(normed)), modulation)


class CrossAttention(Block):
    """Queries attend to tokens: attention, then an MLP, each after a norm.

    With `attends_queries`, the queries attend to the tokens and to one another.
    """

    def __init__(
        self,
        query_channels: int,
        token_channels: int,
        config: BlockConfig,
        query_residual: bool,
        attends_queries: bool = False,
        condition_channels: int | None = None,
    ) -> None:
        super().__init__()
        if attends_queries and query_channels != token_channels:
            widths = f"tokens of {token_channels} channels and latents of {query_channels}"
            raise ValueError(f"attend_latents needs {widths} to be equally wide: set input_channels")
        self.query_residual, self.attends_queries = query_residual, attends_queries
        self.query_norm = norm_layer(query_channels, config.norm, config.norm_epsilon)
        self.token_norm = norm_layer(token_channels, config.norm, config.norm_epsilon)
        attention = Attention(query_channels, token_channels, config)
        self.add_branches(attention, config, query_residual, condition_channels)

    def forward(
        self,
        queries: Any,
        tokens: Any,
        mask: Mask | None = None,
        rotation: Rotation | None = None,
        condition: Tensor | None = None,
        compute: Any = None,
    ) -> Any:
        """Return the updated queries [B, T, F], or the result of compute(block, queries, tokens).

        All uses of the block's weights go through this call: wrappers (sharding, offloading) make the weights ready
        only here. Without `compute`, queries are [B, T, F], tokens [B, S, C], and attention is `dense`.
        """
        if compute is not None:
            return compute(self, queries, tokens)
        return self.dense(queries, tokens, mask, rotation, condition)

    def dense(
        self,
        queries: Float[Tensor, "#b t f"],
        tokens: Float[Tensor, "#b s c"],
        mask: Mask | None = None,
        rotation: Rotation | None = None,
        condition: Float[Tensor, "#b k"] | None = None,
    ) -> Float[Tensor, "b t f"]:
        """Return the updated queries. The residual adds the queries themselves, not the normed ones.

        With `attends_queries`, mask and rotation are those of the tokens and then the queries as keys.
        """
        of_attention, of_mlp = self.modulations_of(condition)
        q, keys = self.normed_queries(queries, of_attention), apply_norm(self.token_norm, tokens)
        keys = concatenated([keys, q], dim=1) if self.attends_queries else keys
        return self.finish(queries, self.attention(q, keys, mask, rotation), of_attention, of_mlp)

    def normed_queries(
        self, queries: Float[Tensor, "#b t f"], modulation: Modulation | None = None
    ) -> Float[Tensor, "#b t f"]:
        """Return the queries as they enter the attention."""
        normed = apply_norm(self.query_norm, queries)
        return normed if modulation is None else modulation.enter(normed)

    def finish(
        self,
        queries: Float[Tensor, "#b t f"],
        found: Float[Tensor, "b t f"],
        of_attention: Modulation | None = None,
        of_mlp: Modulation | None = None,
    ) -> Float[Tensor, "b t f"]:
        """Return the updated queries, from the result of attention: residual, then MLP."""
        x = self.attention_exit(self.dropout(found), of_attention)
        x = queries.to(x.dtype) + x if self.query_residual else x
        return self.through_mlp(x, of_mlp)

    def update(self, latents: Latents, state: SoftmaxState) -> Float[Tensor, "b t f"]:
        """Return latents updated with the softmax state of all tokens."""
        of_attention, of_mlp = self.modulations_of(latents.condition)
        if self.attends_queries:
            q = self.normed_queries(latents.array, of_attention)
            state = state + self._state(q, q, Mask(keys=latents.mask), self.rotation(latents, latents))
        found = apply_linear(self.attention.output, state.attended().to(latents.array.dtype))
        return self.finish(latents.array, found, of_attention, of_mlp)

    def softmax_state(
        self,
        latents: Latents,
        tokens: Float[Tensor, "#b s c"],
        mask: Mask | None = None,
        rotation: Rotation | None = None,
    ) -> SoftmaxState:
        """Return the softmax state of these tokens, which can be added to the states of other tokens."""
        of_attention, _ = self.modulations_of(latents.condition)
        q = self.normed_queries(latents.array, of_attention)
        return self._state(q, apply_norm(self.token_norm, tokens), mask, rotation)

    def _state(self, queries: Tensor, tokens: Tensor, mask: Mask | None, rotation: Rotation | None) -> SoftmaxState:
        q, k, v = self.attention.heads(queries, tokens, mask, rotation)
        dtype, valid = torch.promote_types(q.dtype, torch.float32), None if mask is None else mask.scores()
        with without_autocast(q.device):
            scores = q.to(dtype) @ k.to(dtype).mT / math.sqrt(q.shape[-1])
            scores = scores if valid is None else scores.masked_fill(~valid, -math.inf)
            nothing = scores.new_full((*scores.shape[:-1], 1), NO_SCORE)  # finite without a valid key
            max_score = torch.cat([scores.detach(), nothing], -1).amax(-1)
            weights = (scores - max_score[..., None]).exp()
            found = weights @ v.to(dtype)
            return SoftmaxState(max_score, weights.sum(-1), found if rotation is None else rotation.back(found))

    def weights(
        self,
        queries: Float[Tensor, "#b t f"],
        tokens: Float[Tensor, "#b s c"],
        mask: Mask | None = None,
        rotation: Rotation | None = None,
        condition: Float[Tensor, "#b k"] | None = None,
    ) -> Float[Tensor, "b h t s"]:
        """Return the attention map of this block: how much each query attends to each key."""
        of_attention, _ = self.modulations_of(condition)
        q, keys = self.normed_queries(queries, of_attention), apply_norm(self.token_norm, tokens)
        keys = concatenated([keys, q], dim=1) if self.attends_queries else keys
        q, k, _ = self.attention.heads(q, keys, mask, rotation)
        return attention_weights(q, k, *Mask.rules(mask))


class SelfAttention(Block):
    """Latents attend to one another; one norm feeds queries, keys and values."""

    def __init__(self, channels: int, config: BlockConfig, condition_channels: int | None = None) -> None:
        super().__init__()
        self.norm = norm_layer(channels, config.norm, config.norm_epsilon)
        self.add_branches(Attention(channels, channels, config), config, True, condition_channels)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Mask | None = None,
        rotation: Rotation | None = None,
        condition: Float[Tensor, "#b k"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return the updated latents."""
        of_attention, of_mlp = self.modulations_of(condition)
        normed = self.norm(x)
        normed = normed if of_attention is None else of_attention.enter(normed)
        x = x + self.attention_exit(self.dropout(self.attention(normed, normed, mask, rotation)), of_attention)
        return self.through_mlp(x, of_mlp)
