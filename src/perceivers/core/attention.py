"""Attention, dense: all tokens at once. The reference for every other algorithm.

    attend(q, k, v) = softmax(q k' / sqrt(d)) v

Letters: B batch, T queries, S keys, H heads. A batch of 1 stands for "the same for every sample".
Source: `Attention` of the official perceiver.py.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.core import layers
from perceivers.core.block_config import BlockConfig
from perceivers.core.coordinates import UNTURNED, RotaryEmbedding, Rotation
from perceivers.core.layers import apply_linear, attention_linear, norm_layer
from perceivers.core.tokens import token_dtype

Queries = Float[Tensor, "#b t f"]
Keys = Float[Tensor, "#b s c"]
Attended = Float[Tensor, "b t f"]


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


def attention_weights(q: Tensor, k: Tensor, valid: Tensor | None = None, dead: Tensor | None = None) -> Tensor:
    """Return softmax(q k' / sqrt(d)) [*, T, S] over valid scores, in at least float32; 0 for dead queries (`Mask`)."""
    dtype = q.dtype
    q, k = (x.to(token_dtype(dtype)) for x in (q, k))
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
    if valid is not None:
        scores = scores.masked_fill(~valid, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(dtype)
    return weights if dead is None else weights.masked_fill(dead, 0)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, dropout: float = 0.0) -> Tensor:
    """Return weighted sums of values [B, H, T, e]; exactly 0 for a query without a valid key (official `attend`)."""
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
        v_channels, heads = config.v_channels or qk_channels, config.num_heads
        for name, width in (("qk_channels", qk_channels), ("v_channels", v_channels)):
            if width % heads:
                raise ValueError(f"{name} = {width} is not a multiple of num_heads = {heads}")
        self.num_heads, self.num_kv_heads, self.dropout = heads, config.num_kv_heads or heads, config.attention_dropout
        self.query_channels, self.token_channels = query_channels, token_channels
        self.qk_channels, self.v_channels = qk_channels, v_channels
        # The maps; heads of keys and values may be fewer than those of queries.
        key_channels, value_channels = (width // heads * self.num_kv_heads for width in (qk_channels, v_channels))
        self.query = attention_linear(query_channels, qk_channels, config.qkv_bias)
        self.key = attention_linear(token_channels, key_channels, config.qkv_bias)
        if config.qk_init_gain is not None:
            if query_channels != token_channels or key_channels != qk_channels:
                widths = f"{query_channels} and {token_channels}, of {heads} and {self.num_kv_heads} heads"
                raise ValueError(f"qk_init_gain needs queries like the tokens, not widths of {widths}: leave it out")
            self.key.weight.data.copy_(config.qk_init_gain * self.query.weight.data)
        self.value = attention_linear(token_channels, value_channels, config.qkv_bias)
        self.output = attention_linear(v_channels, query_channels, config.output_bias)
        # What acts on each head's queries and keys.
        width = qk_channels // heads
        norms = (norm_layer(width, config) if config.qk_norm else None for _ in range(2))
        self.query_head_norm, self.key_head_norm = norms
        self.rotary = None if config.rotary is None else RotaryEmbedding(config.rotary, width)
        if config.rotary is not None and config.rotary.values and v_channels != qk_channels:
            raise ValueError(f"rotary.values needs values as wide as queries, not {v_channels} and {qk_channels}")

    def forward(
        self, queries: Queries, tokens: Keys, mask: Mask | None = None, rotation: Rotation = UNTURNED
    ) -> Attended:
        """Return attended queries; a batch of 1 in queries, tokens or mask serves the whole batch of the others."""
        q, k, v = self.heads(queries, tokens, mask, rotation)
        attended = rotation.back(attend(q, k, v, mask, self.dropout if self.training else 0.0))
        return apply_linear(self.output, rearrange(attended, "b h t d -> b t (h d)"))

    def heads(
        self, queries: Queries, tokens: Keys, mask: Mask | None = None, rotation: Rotation = UNTURNED
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, split into heads, rotated, and expanded to the whole batch."""
        kv = self.num_kv_heads
        maps = ((self.query, queries, self.num_heads), (self.key, tokens, kv), (self.value, tokens, kv))
        q, k, v = (rearrange(apply_linear(m, x), "b t (h d) -> b h t d", h=heads) for m, x, heads in maps)
        if self.query_head_norm is not None and self.key_head_norm is not None:
            q, k = self.query_head_norm(q), self.key_head_norm(k)
        q, k, v = rotation.queries(q), rotation.keys(k), rotation.values(v)
        if (group := self.num_heads // kv) > 1:
            k, v = (repeat(x, "b h s d -> b (h g) s d", g=group) for x in (k, v))
        batch = max(q.shape[0], k.shape[0], 1 if mask is None else mask.batch_size)
        return q.expand(batch, -1, -1, -1), k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)
