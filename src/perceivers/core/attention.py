"""Attention and the two blocks built on it, dense: all tokens at once. The reference for every other algorithm.

    attend(q, k, v) = softmax(q k' / sqrt(d)) v        x = q + attention(norm q, norm tokens);   x + MLP(norm x)

Letters: B batch, T queries, S keys, H heads. A batch of 1 stands for "the same for every sample".
Source: `Attention`, `CrossAttention`, `SelfAttention`, `MLP` of the official perceiver.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.core import layers
from perceivers.core.config import BlockConfig
from perceivers.core.layers import LAYER_NORM_EPSILON, apply_linear, apply_norm, attention_linear, without_autocast
from perceivers.core.reading import NO_SCORE, SoftmaxState
from perceivers.core.tokens import token_dtype


def quick_gelu(x: Tensor) -> Tensor:
    """Return x * sigmoid(1.702 x), a coarse approximation of GELU that some third-party checkpoints use."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # the default of jax.nn.gelu, used by all released models
    "gelu_erf": F.gelu,  # used by ports to PyTorch; differs by at most 5e-4
    "quick_gelu": quick_gelu,  # this and the next two: for third-party models
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class Mask:
    """Mask of attention, True where valid: by keys, by queries, by pairs of both, or several together."""

    keys: Bool[Tensor, "#b s"] | None = None
    """Keys that exist."""
    queries: Bool[Tensor, "#b t"] | None = None
    """Queries that exist; the others get the result of attending to nothing."""
    pairs: Bool[Tensor, "#b t s"] | None = None
    """Pairs of a query and a key that may attend."""

    @property
    def batch_size(self) -> int:
        """B; 1 if the mask is the same for every sample."""
        return max([1, *(rule.shape[0] for rule in (self.keys, self.queries, self.pairs) if rule is not None)])

    def scores(self) -> Bool[Tensor, "#b 1 #t s"] | None:
        """Return True for valid scores, broadcastable over heads (and queries, without pairs); None: all are valid."""
        keys = None if self.keys is None else rearrange(self.keys, "b s -> b 1 1 s")
        pairs = None if self.pairs is None else rearrange(self.pairs, "b t s -> b 1 t s")
        if keys is None or pairs is None:
            return pairs if keys is None else keys
        return keys & pairs

    @staticmethod
    def rules(mask: "Mask | None") -> tuple[Tensor | None, Tensor | None]:
        """Return `scores()` and `dead()` of a mask; None, None without a mask."""
        return (None, None) if mask is None else (mask.scores(), mask.dead())

    def dead(self) -> Bool[Tensor, "#b 1 #t 1"] | None:
        """Return True for queries that have no valid key or do not exist; None: there are none."""
        scores = self.scores()
        dead = None if scores is None else ~scores.any(dim=-1, keepdim=True)
        if self.queries is None:
            return dead
        absent = ~rearrange(self.queries, "b t -> b 1 t 1")
        return absent if dead is None else absent | dead


def attention_weights(
    q: Float[Tensor, "*b t d"], k: Float[Tensor, "*b s d"], valid: Tensor | None = None, dead: Tensor | None = None
) -> Float[Tensor, "*b t s"]:
    """Return softmax(q k' / sqrt(d)) over valid scores, in at least float32; 0 for dead queries (`Mask`)."""
    dtype = q.dtype
    q, k = (x.to(token_dtype(dtype)) for x in (q, k))
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
    if valid is not None:
        scores = scores.masked_fill(~valid, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(dtype)
    return weights if dead is None else weights.masked_fill(dead, 0)


def attend(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s e"],
    mask: Mask | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "b h t e"]:
    """Return weighted sums of values; exactly 0 for a query without a valid key (official `attend`)."""
    if layers.fast is not None:
        return layers.fast.attend(q, k, v, mask, dropout)
    return F.dropout(attention_weights(q, k, *Mask.rules(mask)), dropout) @ v


def plan_attention(memory_limit: int | str | None = None, algorithm: str | None = None) -> Any:
    """Return the plan of cross-attentions (`fast.Plan`); None where `core/fast` is removed: all is dense."""
    if layers.fast is not None:
        return layers.fast.Plan(memory_limit, algorithm)
    if memory_limit is not None or algorithm not in (None, "dense"):
        raise ValueError("without perceivers/core/fast attention is dense: give no memory limit and no algorithm")
    return None


class Attention(nn.Module):
    """Multi-head attention of queries [B, T, F] to tokens [B, S, C]; the result has the queries' width."""

    def __init__(self, query_channels: int, token_channels: int, config: BlockConfig) -> None:
        super().__init__()
        qk_channels = config.qk_channels or token_channels
        v_channels = config.v_channels or qk_channels
        for name, width in (("qk_channels", qk_channels), ("v_channels", v_channels)):
            if width % config.num_heads:
                raise ValueError(f"{name} = {width} is not a multiple of num_heads = {config.num_heads}")
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        self.query_channels, self.token_channels = query_channels, token_channels
        self.qk_channels, self.v_channels = qk_channels, v_channels
        self.query = attention_linear(query_channels, qk_channels)
        self.key = attention_linear(token_channels, qk_channels)
        if config.qk_init_gain is not None:
            if query_channels != token_channels:
                widths = f"{query_channels} and {token_channels}"
                raise ValueError(f"qk_init_gain needs queries as wide as the tokens, not {widths}: leave it out")
            self.key.weight.data.copy_(config.qk_init_gain * self.query.weight.data)
        self.value = attention_linear(token_channels, v_channels)
        self.output = attention_linear(v_channels, query_channels)

    def forward(
        self, queries: Float[Tensor, "#b t f"], tokens: Float[Tensor, "#b s c"], mask: Mask | None = None
    ) -> Float[Tensor, "b t f"]:
        """Return attended queries; a batch of 1 in queries, tokens or mask serves the whole batch of the others."""
        q, k, v = self.heads(queries, tokens, mask)
        attended = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        return apply_linear(self.output, rearrange(attended, "b h t d -> b t (h d)"))

    def heads(
        self, queries: Float[Tensor, "#b t f"], tokens: Float[Tensor, "#b s c"], mask: Mask | None = None
    ) -> tuple[Float[Tensor, "b h t d"], Float[Tensor, "b h s d"], Float[Tensor, "b h s e"]]:
        """Return queries, keys and values, split into heads and expanded to the whole batch."""
        maps = ((self.query, queries), (self.key, tokens), (self.value, tokens))
        q, k, v = (rearrange(apply_linear(m, x), "b t (h d) -> b h t d", h=self.num_heads) for m, x in maps)
        batch = max(q.shape[0], k.shape[0], 1 if mask is None else mask.batch_size)
        return q.expand(batch, -1, -1, -1), k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)


class MLP(nn.Module):
    """Two linear maps with an activation in between."""

    def __init__(self, channels: int, config: BlockConfig) -> None:
        super().__init__()
        self.hidden_channels = config.widening_factor * channels
        self.hidden = attention_linear(channels, self.hidden_channels)
        self.output = attention_linear(self.hidden_channels, channels)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """Return x through the MLP, in the same shape."""
        return self.dropout(apply_linear(self.output, self.activation(apply_linear(self.hidden, x))))


class CrossAttention(nn.Module):
    """Queries attend to tokens: attention, then an MLP, each after a layer norm."""

    def __init__(self, query_channels: int, token_channels: int, config: BlockConfig, query_residual: bool) -> None:
        super().__init__()
        self.query_residual = query_residual
        self.query_norm = nn.LayerNorm(query_channels, eps=LAYER_NORM_EPSILON)
        self.token_norm = nn.LayerNorm(token_channels, eps=LAYER_NORM_EPSILON)
        self.attention = Attention(query_channels, token_channels, config)
        self.dropout = nn.Dropout(config.dropout)
        self.mlp_norm = nn.LayerNorm(query_channels, eps=LAYER_NORM_EPSILON)
        self.mlp = MLP(query_channels, config)

    def forward(self, queries: Any, tokens: Any, mask: Mask | None = None, compute: Any = None) -> Any:
        """Return the updated queries [B, T, F], or the result of compute(block, queries, tokens).

        All uses of the block's weights go through this call: wrappers (sharding, offloading) make the weights ready
        only here. Without `compute`, queries are [B, T, F], tokens [B, S, C], and attention is dense.
        """
        return self.dense(queries, tokens, mask) if compute is None else compute(self, queries, tokens)

    def dense(
        self, queries: Float[Tensor, "#b t f"], tokens: Float[Tensor, "#b s c"], mask: Mask | None = None
    ) -> Float[Tensor, "b t f"]:
        """Return the updated queries. The residual adds the queries themselves, not the normed ones."""
        return self.finish(queries, self.attention(*self._normed(queries, tokens), mask))

    def finish(self, queries: Float[Tensor, "#b t f"], found: Float[Tensor, "b t f"]) -> Float[Tensor, "b t f"]:
        """Return the updated queries, from the result of attention: residual, then MLP."""
        x = self.dropout(found)
        x = queries.to(x.dtype) + x if self.query_residual else x
        return x + self.mlp(self.mlp_norm(x))

    def update(self, queries: Float[Tensor, "#b t f"], state: SoftmaxState) -> Float[Tensor, "b t f"]:
        """Return queries updated with the softmax state of all tokens."""
        return self.finish(queries, apply_linear(self.attention.output, state.attended().to(queries.dtype)))

    def softmax_state(
        self, queries: Float[Tensor, "#b t f"], tokens: Float[Tensor, "#b s c"], mask: Mask | None = None
    ) -> SoftmaxState:
        """Return the softmax state of these tokens, which can be added to the states of other tokens."""
        q, k, v = self.attention.heads(*self._normed(queries, tokens), mask)
        dtype, valid = torch.promote_types(q.dtype, torch.float32), None if mask is None else mask.scores()
        with without_autocast(q.device):
            scores = q.to(dtype) @ k.to(dtype).mT / math.sqrt(q.shape[-1])
            scores = scores if valid is None else scores.masked_fill(~valid, -math.inf)
            nothing = scores.new_full((*scores.shape[:-1], 1), NO_SCORE)  # finite without a valid key
            max_score = torch.cat([scores.detach(), nothing], -1).amax(-1)
            weights = (scores - max_score[..., None]).exp()
            return SoftmaxState(max_score, weights.sum(-1), weights @ v.to(dtype))

    def weights(
        self, queries: Float[Tensor, "#b t f"], tokens: Float[Tensor, "#b s c"], mask: Mask | None = None
    ) -> Float[Tensor, "b h t s"]:
        """Return the attention map of this block: how much each query attends to each token."""
        q, k, _ = self.attention.heads(*self._normed(queries, tokens), mask)
        return attention_weights(q, k, *Mask.rules(mask))

    def _normed(self, queries: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return apply_norm(self.query_norm, queries), apply_norm(self.token_norm, tokens)


def attention_map(
    cross: CrossAttention, queries: Float[Tensor, "#b t f"], tokens: Float[Tensor, "#b s c"], mask: Mask
) -> Float[Tensor, "b h t s"]:
    """Return the attention map of a block."""
    found: Tensor = cross(queries, tokens, compute=partial(CrossAttention.weights, mask=mask))
    return found


class SelfAttention(nn.Module):
    """Latents attend to one another; one layer norm feeds queries, keys and values."""

    def __init__(self, channels: int, config: BlockConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPSILON)
        self.attention = Attention(channels, channels, config)
        self.dropout = nn.Dropout(config.dropout)
        self.mlp_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPSILON)
        self.mlp = MLP(channels, config)

    def forward(self, x: Float[Tensor, "b n d"], mask: Mask | None = None) -> Float[Tensor, "b n d"]:
        """Return the updated latents."""
        normed = self.norm(x)
        x = x + self.dropout(self.attention(normed, normed, mask))
        return x + self.mlp(self.mlp_norm(x))
