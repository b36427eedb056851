"""softmax(q k' / sqrt(d)) v by the fastest kernel for the head widths; equal to `attention.attend` within rounding.

Letters: B batch, H heads, T queries, S keys, d channels of a key, e of a value.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from perceivers.core.attention import Mask, attention_weights

HEAD_MULTIPLE = 8
"""Divisor of the head widths that fused GPU kernels take: cuDNN's and flash up to 256, the others any."""

SCORES_AT_ONCE = 1 << 20
"""Number of scores materialised at a time; they fit into the L2 cache."""


def attend(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s e"],
    mask: Mask | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "b h t e"]:
    """Return weighted sums of values; exactly 0 for a query without a valid key."""
    on_gpu = q.device.type == "cuda"
    valid, dead = Mask.rules(mask)
    if (q.shape[-1] != v.shape[-1] and not on_gpu) or k.shape[-2] == 0:  # no fused kernel takes these
        return _by_heads(q, k, v, valid, dead, dropout)
    if valid is not None and dead is not None:
        valid = valid | dead  # some kernels give NaN for a softmax over nothing
    fused = padded_attention if on_gpu else F.scaled_dot_product_attention
    attended = fused(q, k, v, valid, dropout)
    return attended if dead is None else attended.masked_fill(dead, 0)


def _by_heads(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s e"],
    valid: Bool[Tensor, "#b 1 #t s"] | None,
    dead: Bool[Tensor, "#b 1 #t 1"] | None,
    dropout: float,
) -> Float[Tensor, "b h t e"]:
    """Return attention with materialised scores, of a few heads at a time if there are many scores."""

    def attended(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, dead: Tensor | None) -> Tensor:
        return F.dropout(attention_weights(q, k, valid, dead), dropout) @ v

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


def padded_attention(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s e"],
    valid: Bool[Tensor, "#b 1 #t s"] | None,
    dropout: float,
) -> Float[Tensor, "b h t e"]:
    """Return fused attention, head widths padded with zeros to multiples of HEAD_MULTIPLE."""
    width, scale = v.shape[-1], 1 / math.sqrt(q.shape[-1])
    q, k, v = (F.pad(x, (0, -x.shape[-1] % HEAD_MULTIPLE)) if x.shape[-1] % HEAD_MULTIPLE else x for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, valid, dropout, scale=scale)[..., :width]
