"""Blocks of tokens: their scores, and the sums that the softmax weights. algorithms.py has the algebra.

For a block of m tokens and n query columns (heads times latents when reading), with e = exp(scores - max_score):

    scores(block)              [m, n] or [h, m, n]     -inf where there is no token
    weighted_sums(block, e)    sum of e  [1, n],  sum of e x  [c, n]     x is the vector that e weights

`AbsorbedBlocks`: x is the normed token, assembled for the block.  `ProjectedBlocks`: x is its value, [h, e, n].
`SeparableBlocks` (separable_blocks.py): x is never assembled.

Letters: m tokens of a block, n query columns, c channels of a token, h heads, d channels of a key, e of a value.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perceivers.core.coordinates import Rotation
from perceivers.core.fast.linear_maps import Norm, norm_of, scale_and_shift
from perceivers.core.fast.onednn import linear, matmul
from perceivers.core.tokens import Segment

Block = tuple[int, int]
"""Range of tokens, from the first to before the last, row-major."""

HEAP_BYTES = 31 << 20
"""Size in bytes of an array just below the largest to which glibc adapts (`keep_heap`)."""

ONE = torch.Size()
"""Batch shape of a single sample, whose arrays have no batch axis."""


class TokenBlocks(ABC):
    """Tokens of one or several samples, block by block; scores have an entry for each token and query column."""

    per_token: tuple[str, ...] = ("content", "positions")
    """Names of the tensors that have an entry for each token."""
    unit: int = 1
    """Divisor of the number of tokens in a block."""

    def __init__(self, segment: Segment, dtype: torch.dtype, norm: Norm, batch: torch.Size = ONE) -> None:
        self.segment, self.dtype, self.norm, self.batch = segment, dtype, norm, batch
        self.tensors: dict[str, Tensor] = {}
        """All tensors that may need a gradient, by name."""

    @abstractmethod
    def scores(self, tensors: dict[str, Tensor], block: Block) -> tuple[Float[Tensor, "*h m n"], Any]:
        """Return the scores of a block of tokens, and intermediate results for `weighted_sums`."""

    @abstractmethod
    def weighted_sums(self, seen: Any, weights: Float[Tensor, "*h m n"]) -> tuple[Float[Tensor, "*h _ n"], ...]:
        """Return sums over the tokens of a block: of the weights, then of the weighted vectors."""

    def accumulate(self, sums: list[Tensor], seen: Any, weights: Float[Tensor, "*h m n"]) -> list[Tensor]:
        """Return the sums of other blocks with those of this block added in place."""
        return [x.add_(y) for x, y in zip(sums, self.weighted_sums(seen, weights), strict=True)]

    def slice(self, tensors: dict[str, Tensor], block: Block) -> dict[str, Tensor]:
        """Return views of the tensors that a block needs."""
        return {name: x[..., slice(*block), :] if name in self.per_token else x for name, x in tensors.items()}

    @property
    def device(self) -> torch.device:
        """Device of the tokens."""
        return self.segment.device

    def valid(self, block: Block) -> Bool[Tensor, "*b m"] | None:
        """Return True where there is a token; None: everywhere."""
        return None if self.segment.mask is None else self.per_sample(self.segment.mask)[..., slice(*block)]

    def per_sample(self, x: Tensor) -> Tensor:
        """Return an array of the segment, [#b, m, ...], expanded to `batch`; for one sample, without a batch axis."""
        return x.expand(*self.batch, *x.shape[1:]) if self.batch else x[0]

    def mask_invalid(self, scores: Float[Tensor, "*h m n"], block: Block) -> Float[Tensor, "*h m n"]:
        """Return the scores with minus infinity where there is no token."""
        valid = self.valid(block)
        return scores if valid is None else scores.masked_fill(~valid[..., None], -math.inf)


class DenseBlocks(TokenBlocks):
    """Tokens that are assembled and normed block by block."""

    def __init__(self, segment: Segment, dtype: torch.dtype, norm: Norm) -> None:
        super().__init__(segment, dtype, norm)
        weight, bias = segment.projection or (None, None)
        positions = segment.positions if isinstance(segment.positions, Tensor) else None
        parts = {
            "content": None if segment.content is None else self.per_sample(segment.content),
            "positions": positions if positions is None or positions.ndim == 2 else positions[0],
            "padding": segment.padding,
            "mask_token": segment.mask_token,
            "weight": weight,
            "bias": bias,
        }
        self.tensors = {name: part for name, part in parts.items() if part is not None}

    def dense_block(self, tensors: dict[str, Tensor], block: Block) -> Float[Tensor, "m c"]:
        """Return the tokens of a block."""
        part: dict[str, Any] = {name: tensors[name][None] for name in self.per_token if name in tensors}
        part |= {name: tensors[name] for name in ("padding", "mask_token") if name in tensors}
        projection = (tensors["weight"], tensors["bias"]) if "weight" in tensors else None
        return replace(self.segment.block(*block), **part, projection=projection).dense(self.dtype)[0]

    def normed_block(self, tensors: dict[str, Tensor], block: Block) -> Float[Tensor, "m c"]:
        """Return the tokens of a block after a norm without scale and shift."""
        return self.norm(self.dense_block(tensors, block))


class AbsorbedBlocks(DenseBlocks):
    """scores = x @ folded + added, where x [m, c] are normed tokens and `folded` [c, n] is A of algorithms.py."""

    def __init__(self, segment: Segment, norm: Norm, folded: Tensor, added: Tensor | None = None) -> None:
        super().__init__(segment, folded.dtype, norm)
        self.tensors |= {"folded": folded} | ({} if added is None else {"added": added})

    def scores(self, tensors: dict[str, Tensor], block: Block) -> tuple[Tensor, Tensor]:
        """Return scores [m, n], and the normed tokens."""
        x = self.normed_block(tensors, block)
        scores = matmul(x, tensors["folded"])
        scores = scores + tensors["added"] if "added" in tensors else scores
        return self.mask_invalid(scores, block), x

    def weighted_sums(self, seen: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        """Return sums of weights [1, n] and of normed tokens [c, n]."""
        return weights.sum(-2, keepdim=True), matmul(seen.mT, weights)

    def weighted_tokens(self, sums: Sequence[Tensor]) -> Float[Tensor, "c n"]:
        """Return the weighted sum of the normed tokens."""
        return sums[0]


@dataclass(frozen=True)
class HeadSteps:
    """Steps behind the linear maps of tokens to heads: biases, a norm, a rotation, copies for groups of heads."""

    rotation: Callable[[Segment], Rotation]
    """Function that returns the rotation between the tokens of a block and the latents."""
    norm: nn.Module | None = None
    """The norm of each head's keys (reading) or queries (writing); None: there is none."""
    bias: Tensor | None = None
    """Bias of the keys (or queries), [h, d]; None: `added` stands for it, or the softmax cancels it."""
    value_bias: Tensor | None = None
    """Bias of the values, [h, e]; None: it is added behind the sum."""
    group: int = 1
    """Number of neighbouring heads of queries that share a head of keys and values."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that may need a gradient, by name."""
        found = {"head_bias": self.bias, "value_bias": self.value_bias}
        if self.norm is not None:
            found["head_scale"], found["head_shift"] = scale_and_shift(self.norm, self.norm.weight.dtype)  # type: ignore[arg-type]
        return {name: x for name, x in found.items() if x is not None}

    def normed(self, x: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Return heads after their norm, if there is one."""
        if self.norm is None:
            return x
        scale, shift = (tensors[name].to(x.dtype) for name in ("head_scale", "head_shift"))
        return norm_of(self.norm)(x, scale, shift)


def normed_heads(norm: nn.Module | None, x: Tensor) -> Tensor:
    """Return heads in the precision of x after their norm, if there is one."""
    return x if norm is None else norm_of(norm)(x, *scale_and_shift(norm, x.dtype))


class ProjectedBlocks(DenseBlocks):
    """scores = keys @ queries', keys = x key', values = x value', where x [m, c] are normed tokens.

    `queries` [h, n, d], `key` [h, d, c], `value` [h, e, c]; `added` is a constant for each query. When writing, the
    tokens are queries: `queries` are the latents' keys, and `key` is the map of queries.
    """

    def __init__(
        self,
        segment: Segment,
        norm: Norm,
        queries: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        added: Tensor | None = None,
        steps: HeadSteps | None = None,
    ) -> None:
        super().__init__(segment, queries.dtype, norm)
        given = {"queries": queries, "key": key, "value": value, "added": added}
        self.tensors |= {name: part for name, part in given.items() if part is not None}
        self.steps = steps
        self.tensors |= {} if steps is None else steps.tensors()

    def scores(self, tensors: dict[str, Tensor], block: Block) -> tuple[Tensor, Tensor | None]:
        """Return scores [h, m, n], and the values [h, m, e]."""
        x = self.normed_block(tensors, block)
        keys, values = (
            rearrange(linear(x, tensors[name].flatten(0, 1)), "m (h d) -> h m d", h=len(tensors[name]))
            if name in tensors
            else None
            for name in ("key", "value")
        )
        assert keys is not None
        if self.steps is not None:
            keys, values = self._stepped(keys, values, tensors, block)
        scores = keys @ tensors["queries"].mT
        scores = scores + tensors["added"].unflatten(0, (len(scores), 1, -1)) if "added" in tensors else scores
        return self.mask_invalid(scores, block), values

    def weighted_sums(self, seen: Tensor | None, weights: Tensor) -> tuple[Tensor, ...]:
        """Return sums of weights [h, 1, n] and of values [h, e, n]."""
        assert seen is not None
        return weights.sum(-2, keepdim=True), seen.mT @ weights

    def _stepped(
        self, keys: Tensor, values: Tensor | None, tensors: dict[str, Tensor], block: Block
    ) -> tuple[Tensor, Tensor | None]:
        """Return keys (or queries) and values after `steps`."""
        steps = self.steps
        assert steps is not None
        keys = keys + tensors["head_bias"][:, None] if "head_bias" in tensors else keys
        values = values + tensors["value_bias"][:, None] if values is not None and "value_bias" in tensors else values
        keys, rotation = steps.normed(keys, tensors), steps.rotation(self.segment.block(*block))
        if values is None:  # writing
            return rotation.queries(keys[None])[0], None
        keys, values = rotation.keys(keys[None])[0], rotation.values(values[None])[0]
        if steps.group == 1:
            return keys, values
        return keys.repeat_interleave(steps.group, 0), values.repeat_interleave(steps.group, 0)


def sample_of(segment: Segment, number: int) -> Segment:
    """Return one sample of the batch, as a batch of one."""

    def take(x: Tensor) -> Tensor:
        return x[number : number + 1] if len(x) > 1 else x

    return segment.taken(take, lambda tables: tables, segment.grid)


def blocks_of(tokens: TokenBlocks, block_size: int) -> list[Block]:
    """Return blocks of about this many tokens, multiples of the unit; one empty block if there are no tokens."""
    if tokens.device.type == "cpu":
        keep_heap()
    count, size = tokens.segment.num_tokens, max(block_size // tokens.unit, 1) * tokens.unit
    return [(first, min(first + size, count)) for first in range(0, count, size)] or [(0, 0)]


@cache
def keep_heap() -> None:
    """Let the C library keep the memory that a block frees for the next block.

    glibc returns the top of its heap to the system where it exceeds twice the largest freed array that had its own
    mapping (at most 32 MiB); the next block would have to get these pages again. Making and freeing this large array,
    whose memory is never touched, raises that threshold.
    """
    torch.empty(HEAP_BYTES, dtype=torch.uint8)
