"""The two blocks built on attention, dense: all tokens at once. The reference for every other algorithm.

    x = q + attention(norm q, norm tokens);     x + MLP(norm x)

A condition scales and shifts what enters a branch (attention, MLP) and gates what leaves it; it starts as the identity.
B batch, T queries, S keys, H heads. Source: `CrossAttention`, `SelfAttention`, `MLP` of the official perceiver.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.core.attention import Attended, Attention, Keys, Mask, Queries, attention_weights
from perceivers.core.block_config import BlockConfig
from perceivers.core.coordinates import UNTURNED, Rotation
from perceivers.core.latents import Latents
from perceivers.core.layers import apply_linear, apply_norm, attention_linear, norm_layer, plain_linear
from perceivers.core.reading import SoftmaxState
from perceivers.core.tokens import concatenated

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # the default of jax.nn.gelu, used by all released models
    "gelu_erf": F.gelu,  # used by ports to PyTorch; differs by at most 5e-4
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),  # a coarse approximation; this and the others: for ports
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
        self.activation = config.activation
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Attended) -> Attended:
        """Return x through the MLP, in the same shape."""
        return self.dropout(apply_linear(self.output, self.activated(apply_linear(self.hidden, x))))

    def activated(self, hidden: Float[Tensor, "*b w"]) -> Float[Tensor, "*b h"]:
        """Return the activation of hidden values; if gated, their first half times the activation of the second."""
        activation = ACTIVATIONS[self.activation]
        if not self.gated:
            return activation(hidden)
        values, gates = hidden.chunk(2, -1)
        return values * activation(gates)


@dataclass(frozen=True)
class Modulation:
    """Changes that a condition and LayerScale make to one branch of a block, [#b, 1, C] each; None: no change."""

    scale: Tensor | None = None
    """Factor of what enters the branch."""
    shift: Tensor | None = None
    """Summand of what enters the branch."""
    gate: Tensor | None = None
    """Factor of what leaves the branch."""

    def enter(self, x: Tensor) -> Tensor:
        """Return what enters the branch."""
        return x if self.scale is None or self.shift is None else x * self.scale + self.shift

    def leave(self, x: Tensor) -> Tensor:
        """Return what leaves the branch."""
        return x if self.gate is None else x * self.gate


UNMODULATED = Modulation()


class Block(nn.Module):
    """Base of both kinds of block: attention, behind norms that each kind adds, and an MLP."""

    def add_branches(self, attention: Attention, config: BlockConfig, condition: int | None) -> None:
        """Add the modules behind the norms of the attention; `condition`: width of the condition, if there is one."""
        channels, has_mlp = attention.query_channels, config.widening_factor > 0
        self.attention, self.dropout, self.skip_prob = attention, nn.Dropout(config.dropout), config.stochastic_depth
        self.mlp_norm = norm_layer(channels, config) if has_mlp else None
        self.mlp = MLP(channels, config) if has_mlp else None
        scales = (config.layer_scale if has else None for has in (True, has_mlp))
        self.attention_scale, self.mlp_scale = (
            None if scale is None else nn.Parameter(torch.full((channels,), scale)) for scale in scales
        )
        self.modulation_map = None
        if config.conditioned and condition is not None:  # starts at 0: the identity
            self.modulation_map = plain_linear(condition, 6 * channels, zero=True)

    def modulations(self, condition: Tensor | None) -> tuple[Modulation, Modulation]:
        """Return the modulations of attention and MLP, under a condition [#b, k]."""
        scales = (self.attention_scale, self.mlp_scale)
        if self.modulation_map is None or condition is None:
            return Modulation(gate=scales[0]), Modulation(gate=scales[1])
        found, parts = [], self.modulation_map(condition)[:, None].chunk(6, -1)
        for (scale, shift, gate), layer_scale in zip((parts[:3], parts[3:]), scales, strict=True):
            gate = 1 + gate if layer_scale is None else (1 + gate) * layer_scale
            found.append(Modulation(1 + scale, shift, gate))
        return found[0], found[1]

    def left(self, x: Attended, modulation: Modulation, skips: bool = True) -> Attended:
        """Return what leaves a branch; in training, with `skips`, random samples skip the branch."""
        x = modulation.leave(x)
        if not (skips and self.training and self.skip_prob):
            return x
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.skip_prob
        return torch.where(kept, x / (1 - self.skip_prob), 0)

    def through_mlp(self, x: Attended, modulation: Modulation) -> Attended:
        """Return x plus the result of the MLP, if there is one."""
        if self.mlp is None or self.mlp_norm is None:
            return x
        return x + self.left(self.mlp(modulation.enter(self.mlp_norm(x))), modulation)

    def rotation(self, queries: Any, keys: Any) -> Rotation:
        """Return the rotation between queries and keys (`Tokens` or `Segment`)."""
        if (rotary := self.attention.rotary) is None:
            return UNTURNED
        dtype = self.attention.query.weight.dtype
        return rotary.between(queries.located(rotary.axes), keys.located(rotary.axes), dtype)


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
        condition: int | None = None,
    ) -> None:
        super().__init__()
        if attends_queries and query_channels != token_channels:
            widths = f"tokens of {token_channels} channels and latents of {query_channels}"
            raise ValueError(f"attend_latents needs {widths} to be equally wide: set input_channels")
        self.query_residual, self.attends_queries = query_residual, attends_queries
        self.query_norm = norm_layer(query_channels, config)
        self.token_norm = norm_layer(token_channels, config)
        self.add_branches(Attention(query_channels, token_channels, config), config, condition)

    def forward(self, queries: Any, tokens: Any, *around: Any, compute: Any = None) -> Any:
        """Return `dense` of queries [B, T, F] and tokens [B, S, C], or compute(block, queries, tokens).

        Weights are used within this call alone, since wrappers (sharding, offloading) make them ready here.
        """
        return self.dense(queries, tokens, *around) if compute is None else compute(self, queries, tokens)

    def dense(
        self,
        queries: Queries,
        tokens: Keys,
        mask: Mask | None = None,
        rotation: Rotation = UNTURNED,
        condition: Tensor | None = None,
    ) -> Attended:
        """Return the updated queries. The residual adds the queries themselves, not the normed ones.

        With `attends_queries`, mask and rotation are those of the tokens and then the queries as keys.
        """
        modulation, of_mlp = self.modulations(condition)
        q, keys = self._normed(queries, tokens, modulation)
        return self.finish(queries, self.attention(q, keys, mask, rotation), modulation, of_mlp)

    def finish(
        self, queries: Queries, found: Attended, modulation: Modulation = UNMODULATED, of_mlp: Modulation = UNMODULATED
    ) -> Attended:
        """Return the updated queries, from the result of attention: residual, then MLP."""
        x = self.left(self.dropout(found), modulation, self.query_residual)
        x = queries.to(x.dtype) + x if self.query_residual else x
        return self.through_mlp(x, of_mlp)

    def update(self, latents: Latents, state: SoftmaxState) -> Attended:
        """Return latents updated with the softmax state of all tokens."""
        modulation, of_mlp = self.modulations(latents.condition)
        if self.attends_queries:
            q = self.normed_queries(latents.array, modulation)
            state = state + self._state(q, q, Mask(keys=latents.mask), self.rotation(latents.segment, latents.segment))
        found = apply_linear(self.attention.output, state.attended().to(latents.array.dtype))
        return self.finish(latents.array, found, modulation, of_mlp)

    def softmax_state(
        self, latents: Latents, tokens: Keys, mask: Mask | None = None, rotation: Rotation = UNTURNED
    ) -> SoftmaxState:
        """Return the softmax state of these tokens, which can be added to the states of other tokens."""
        q = self.normed_queries(latents.array, self.modulations(latents.condition)[0])
        return self._state(q, apply_norm(self.token_norm, tokens), mask, rotation)

    def attention_map(self, queries: Queries, tokens: Keys, *around: Any) -> Float[Tensor, "b h t s"]:
        """Return the attention map of this block, for the arguments of `dense`."""

        def weights(block: CrossAttention, queries: Tensor, tokens: Tensor) -> Tensor:
            mask, rotation, condition = around
            q, keys = block._normed(queries, tokens, block.modulations(condition)[0])
            q, k, _ = block.attention.heads(q, keys, mask, rotation)
            return attention_weights(q, k, *Mask.rules(mask))

        found: Tensor = self(queries, tokens, compute=weights)
        return found

    def normed_queries(self, queries: Queries, modulation: Modulation = UNMODULATED) -> Queries:
        """Return the queries as they enter the attention."""
        return modulation.enter(apply_norm(self.query_norm, queries))

    def _normed(self, queries: Queries, tokens: Keys, modulation: Modulation) -> tuple[Tensor, Tensor]:
        q, keys = self.normed_queries(queries, modulation), apply_norm(self.token_norm, tokens)
        return q, concatenated([keys, q], dim=1) if self.attends_queries else keys

    def _state(self, queries: Tensor, tokens: Tensor, mask: Mask | None, rotation: Rotation) -> SoftmaxState:
        q, k, v = self.attention.heads(queries, tokens, mask, rotation)
        state = SoftmaxState.of(q, k, v, None if mask is None else mask.scores())
        return replace(state, weighted_values=rotation.back(state.weighted_values))


class SelfAttention(Block):
    """Latents attend to one another; one norm feeds queries, keys and values."""

    def __init__(self, channels: int, config: BlockConfig, condition: int | None = None) -> None:
        super().__init__()
        self.norm = norm_layer(channels, config)
        self.add_branches(Attention(channels, channels, config), config, condition)

    def forward(
        self, x: Queries, mask: Mask | None = None, rotation: Rotation = UNTURNED, condition: Tensor | None = None
    ) -> Attended:
        """Return the updated latents."""
        modulation, of_mlp = self.modulations(condition)
        normed = modulation.enter(self.norm(x))
        x = x + self.left(self.dropout(self.attention(normed, normed, mask, rotation)), modulation)
        return self.through_mlp(x, of_mlp)
