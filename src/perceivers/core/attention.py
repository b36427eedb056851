"""Attention and the two blocks made of it, dense: all tokens at once. The oracle of every other order.

Letters: B batch, T queries, S keys, H heads. A batch of 1 stands for "the same for every sample".
Source: `Attention`, `CrossAttention`, `SelfAttention`, `MLP` of the official perceiver.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.core.arguments import FRACTION, SIZE, check_fields, check_ranges, without_autocast
from perceivers.core.initialisers import attention_linear
from perceivers.core.linear_map import apply_linear, apply_norm
from perceivers.core.reading import NOTHING_SEEN, ReadState
from perceivers.core.tokens import token_dtype

LAYER_NORM_EPSILON = 1e-5

HEAD_UNIT = 8
"""The fused kernels of GPUs take head widths that are multiples of it: cuDNN's and flash up to 256, the others any."""

SCORES_AT_ONCE = 1 << 20
"""Of those that are written down: so many stay in a cache."""


def quick_gelu(x: Tensor) -> Tensor:
    """Return x * sigmoid(1.702 x), a coarse approximation of GELU that some checkpoints of others have."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # jax.nn.gelu's default, so all released models
    "gelu_erf": F.gelu,  # what ports to PyTorch use; differs by at most 5e-4
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
}
"""By name. The last three are for models that others trained with them."""


@dataclass(frozen=True)
class BlockConfig:
    """What attention blocks have in common, wherever they stand."""

    num_heads: int = 1
    """Attention heads; must divide the widths of queries-and-keys and of values."""
    qk_channels: int | None = None
    """Width of queries and keys; None: that of what is attended to."""
    v_channels: int | None = None
    """Width of values; None: that of queries and keys."""
    widening_factor: int = 1
    """Hidden width of the MLP over its width."""
    activation: Literal["gelu_tanh", "gelu_erf", "quick_gelu", "relu", "silu"] = "gelu_tanh"
    """Activation of the MLP; the released models were trained with tanh GELU."""
    dropout: float = 0.0
    """Dropout after attention and after the MLP, in training."""
    alignment: float | None = None
    """Keys' weights begin as so many times the queries', so that like attends to like; None: at random (official)."""
    attention_dropout: float = 0.0
    """Dropout of the attention weights, in training."""

    def __post_init__(self) -> None:
        check_fields(self)
        sizes = ("num_heads", "qk_channels", "v_channels", "widening_factor")
        check_ranges(self, dict.fromkeys(sizes, SIZE) | dict.fromkeys(("dropout", "attention_dropout"), FRACTION))


@dataclass(frozen=True)
class Mask:
    """Who may attend to whom, True where valid: a rule by keys, by queries, by pairs, or several of them together."""

    keys: Bool[Tensor, "#b s"] | None = None
    """Keys that exist."""
    queries: Bool[Tensor, "#b t"] | None = None
    """Queries that exist; the others get the result of attending to nothing."""
    pairs: Bool[Tensor, "#b t s"] | None = None
    """Any relation of queries and keys."""

    @property
    def batch_size(self) -> int:
        """B; 1 if it is the same for every sample."""
        return max([1, *(rule.shape[0] for rule in (self.keys, self.queries, self.pairs) if rule is not None)])

    def scores(self) -> Bool[Tensor, "#b 1 #t s"] | None:
        """Valid scores, broadcastable over heads (and queries where they do not matter); None: all."""
        keys = None if self.keys is None else rearrange(self.keys, "b s -> b 1 1 s")
        pairs = None if self.pairs is None else rearrange(self.pairs, "b t s -> b 1 t s")
        if keys is None or pairs is None:
            return pairs if keys is None else keys
        return keys & pairs

    def dead(self) -> Bool[Tensor, "#b 1 #t 1"] | None:
        """Queries without one valid key, or that do not exist; None: none are."""
        scores = self.scores()
        dead = None if scores is None else ~scores.any(dim=-1, keepdim=True)
        if self.queries is None:
            return dead
        absent = ~rearrange(self.queries, "b t -> b 1 t 1")
        return absent if dead is None else absent | dead


def attention_weights(
    q: Float[Tensor, "b h t d"], k: Float[Tensor, "b h s d"], mask: Mask | None = None
) -> Float[Tensor, "b h t s"]:
    """softmax(q k' / sqrt(d)) over valid keys; 0 for dead queries. Statistics in at least float32."""
    return _weights(q, k, *((None, None) if mask is None else (mask.scores(), mask.dead())))


def _weights(
    q: Float[Tensor, "*b t d"], k: Float[Tensor, "*b s d"], valid: Tensor | None, dead: Tensor | None
) -> Float[Tensor, "*b t s"]:
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
    """Weighted sums of values; exactly 0 for a query that has nothing to attend to (official `attend`)."""
    on_gpu = q.device.type == "cuda"
    valid, dead = (None, None) if mask is None else (mask.scores(), mask.dead())
    if (q.shape[-1] != v.shape[-1] and not on_gpu) or k.shape[-2] == 0:  # no fused kernel takes these
        return _written_down(q, k, v, valid, dead, dropout)
    if valid is not None and dead is not None:
        valid = valid | dead  # some kernels give NaN for a softmax over nothing
    fused = filled_up_attention if on_gpu else F.scaled_dot_product_attention
    attended = fused(q, k, v, valid, dropout)
    return attended if dead is None else attended.masked_fill(dead, 0)


def _written_down(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s e"],
    valid: Bool[Tensor, "#b 1 #t s"] | None,
    dead: Bool[Tensor, "#b 1 #t 1"] | None,
    dropout: float,
) -> Float[Tensor, "b h t e"]:
    """Attention that writes its scores down, of a few heads at a time where there are many."""

    def attended(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, dead: Tensor | None) -> Tensor:
        return F.dropout(_weights(q, k, valid, dead), dropout) @ v

    heads, scores = q.shape[:2], q.shape[-2] * k.shape[-2]
    if torch.compiler.is_compiling() or heads.numel() * scores <= SCORES_AT_ONCE:
        return attended(q, k, v, valid, dead)
    count = max(SCORES_AT_ONCE // scores, 1)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    valid, dead = (None if x is None else x.expand(*heads, -1, -1).flatten(0, 1) for x in (valid, dead))
    parts = [slice(first, first + count) for first in range(0, len(q), count)]
    found = [
        attended(q[part], k[part], v[part], *(x if x is None else x[part] for x in (valid, dead))) for part in parts
    ]
    return torch.cat(found).unflatten(0, heads)


def filled_up_attention(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s e"],
    valid: Bool[Tensor, "#b 1 #t s"] | None,
    dropout: float,
) -> Float[Tensor, "b h t e"]:
    """The fused attention, head widths filled up with zeros to what the kernels of GPUs take."""
    width, scale = v.shape[-1], 1 / math.sqrt(q.shape[-1])
    q, k, v = (F.pad(x, (0, -x.shape[-1] % HEAD_UNIT)) if x.shape[-1] % HEAD_UNIT else x for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, valid, dropout, scale=scale)[..., :width]


class Attention(nn.Module):
    """Multi-head attention of queries [B, T, F] to tokens [B, S, C], back in the queries' width."""

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
        if config.alignment is not None:
            if query_channels != token_channels:
                widths = f"{query_channels} and {token_channels}"
                raise ValueError(f"alignment needs queries as wide as what they attend to, not {widths}: leave it out")
            self.key.weight.data.copy_(config.alignment * self.query.weight.data)
        self.value = attention_linear(token_channels, v_channels)
        self.output = attention_linear(v_channels, query_channels)

    def forward(
        self, queries: Float[Tensor, "#b t f"], tokens: Float[Tensor, "#b s c"], mask: Mask | None = None
    ) -> Float[Tensor, "b t f"]:
        """Attend; a batch of 1 of queries, tokens or mask serves the whole batch of the others."""
        q, k = self.queries_and_keys(queries, tokens, mask)
        attended = attend(q, k, self.values(tokens, q.shape[0]), mask, self.dropout if self.training else 0.0)
        return apply_linear(self.output, rearrange(attended, "b h t d -> b t (h d)"))

    def queries_and_keys(
        self, queries: Float[Tensor, "#b t f"], tokens: Float[Tensor, "#b s c"], mask: Mask | None = None
    ) -> tuple[Float[Tensor, "b h t d"], Float[Tensor, "b h s d"]]:
        """What the weights are computed from, split into heads, for the whole batch."""
        q, k = self._heads(apply_linear(self.query, queries)), self._heads(apply_linear(self.key, tokens))
        batch = max(q.shape[0], k.shape[0], 1 if mask is None else mask.batch_size)
        return q.expand(batch, -1, -1, -1), k.expand(batch, -1, -1, -1)

    def values(self, tokens: Float[Tensor, "#b s c"], batch_size: int) -> Float[Tensor, "b h s e"]:
        """Return the values, split into heads, for the whole batch."""
        return self._heads(apply_linear(self.value, tokens)).expand(batch_size, -1, -1, -1)

    def _heads(self, x: Float[Tensor, "b t hd"]) -> Float[Tensor, "b h t d"]:
        return rearrange(x, "b t (h d) -> b h t d", h=self.num_heads)


class MLP(nn.Module):
    """Two linear maps with an activation between."""

    def __init__(self, channels: int, config: BlockConfig) -> None:
        super().__init__()
        self.hidden_channels = config.widening_factor * channels
        self.hidden = attention_linear(channels, self.hidden_channels)
        self.output = attention_linear(self.hidden_channels, channels)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """Same shape."""
        return self.dropout(apply_linear(self.output, self.activation(apply_linear(self.hidden, x))))


class CrossAttention(nn.Module):
    """Queries take from tokens: attention, then an MLP, each behind a layer norm."""

    def __init__(self, query_channels: int, token_channels: int, config: BlockConfig, query_residual: bool) -> None:
        super().__init__()
        self.query_residual = query_residual
        self.query_norm = nn.LayerNorm(query_channels, eps=LAYER_NORM_EPSILON)
        self.token_norm = nn.LayerNorm(token_channels, eps=LAYER_NORM_EPSILON)
        self.attention = Attention(query_channels, token_channels, config)
        self.dropout = nn.Dropout(config.dropout)
        self.mlp_norm = nn.LayerNorm(query_channels, eps=LAYER_NORM_EPSILON)
        self.mlp = MLP(query_channels, config)

    def forward(self, queries: Any, tokens: Any, mask: Mask | None = None, algorithm: "Algorithm | None" = None) -> Any:
        """Return the updated queries [B, T, F], or what the `algorithm` makes of block, queries and tokens.

        Nothing outside of this call may use the weights of a block: what wraps one (sharding, offloading) makes them
        ready here. Without an algorithm queries are [B, T, F], tokens [B, S, C], and attention is dense.
        """
        return self.dense(queries, tokens, mask) if algorithm is None else algorithm(self, queries, tokens)

    def dense(
        self, queries: Float[Tensor, "#b t f"], tokens: Float[Tensor, "#b s c"], mask: Mask | None = None
    ) -> Float[Tensor, "b t f"]:
        """Return the updated queries. The residual adds the queries as they came, not their norm."""
        return self.finish(queries, self.attention(*self._normed(queries, tokens), mask))

    def finish(self, queries: Float[Tensor, "#b t f"], found: Float[Tensor, "b t f"]) -> Float[Tensor, "b t f"]:
        """Queries updated with what attention found for them."""
        x = self.dropout(found)
        x = queries.to(x.dtype) + x if self.query_residual else x
        return x + self.mlp(self.mlp_norm(x))

    def softmax_state(
        self, queries: Float[Tensor, "#b t f"], tokens: Float[Tensor, "#b s c"], mask: Mask | None = None
    ) -> ReadState:
        """Return what queries take from some of their tokens, densely, to be added to what they take from others."""
        queries, tokens = self._normed(queries, tokens)
        q, k = self.attention.queries_and_keys(queries, tokens, mask)
        v = self.attention.values(tokens, q.shape[0])
        dtype, valid = torch.promote_types(q.dtype, torch.float32), None if mask is None else mask.scores()
        with without_autocast(q.device):
            scores = q.to(dtype) @ k.to(dtype).mT / math.sqrt(q.shape[-1])
            scores = scores if valid is None else scores.masked_fill(~valid, -math.inf)
            nothing = scores.new_full((*scores.shape[:-1], 1), NOTHING_SEEN)
            largest = torch.cat([scores.detach(), nothing], -1).amax(-1)
            weights = (scores - largest[..., None]).exp()
            return ReadState(largest, weights.sum(-1), weights @ v.to(dtype))

    def weights(
        self, queries: Float[Tensor, "#b t f"], tokens: Float[Tensor, "#b s c"], mask: Mask | None = None
    ) -> Float[Tensor, "b h t s"]:
        """The attention map of this block: how much each query takes from each token."""
        q, k = self.attention.queries_and_keys(*self._normed(queries, tokens), mask)
        return attention_weights(q, k, mask)

    def _normed(self, queries: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return apply_norm(self.query_norm, queries), apply_norm(self.token_norm, tokens)


Algorithm = Callable[[CrossAttention, Any, Any], Any]
"""Computes something of a cross-attention: its output or a part of it, from queries and tokens of any kind."""


class SelfAttention(nn.Module):
    """Latents take from one another; one layer norm feeds queries, keys and values."""

    def __init__(self, channels: int, config: BlockConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPSILON)
        self.attention = Attention(channels, channels, config)
        self.dropout = nn.Dropout(config.dropout)
        self.mlp_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPSILON)
        self.mlp = MLP(channels, config)

    def forward(self, x: Float[Tensor, "b n d"], mask: Mask | None = None) -> Float[Tensor, "b n d"]:
        """Updated latents."""
        normed = self.norm(x)
        x = x + self.dropout(self.attention(normed, normed, mask))
        return x + self.mlp(self.mlp_norm(x))
