"""Tokens as rows of a matrix of scores, made a block at a time, or not made at all. What for: orders.py.

m tokens of a block, n questions (latents times heads, when reading), c channels.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from perceivers.core.attention import LAYER_NORM_EPSILON
from perceivers.core.linear import linear, matmul
from perceivers.core.positions import AxisTables
from perceivers.core.tokens import Segment

Block = tuple[int, int]
"""Tokens from the first to before the last, counted row-major."""

HEAP_BYTES = 31 << 20
"""Of an array that is nearly the largest which glibc learns from (`keep_heap`)."""

ONE = torch.Size()
"""The shape of one sample: nothing stands before its tokens."""


class Rows(ABC):
    """Tokens of a sample, or of several, as rows of a matrix of scores, whose columns are what is asked of them."""

    per_token: tuple[str, ...] = ("content", "positions")
    """Which of the tensors are cut along their tokens."""

    def __init__(self, segment: Segment, dtype: torch.dtype, batch: torch.Size = ONE) -> None:
        self.segment, self.dtype, self.batch = segment, dtype, batch
        self.tensors: dict[str, Tensor] = {}
        """All that a gradient may flow to."""

    @abstractmethod
    def look(self, tensors: dict[str, Tensor], block: Block) -> tuple[Float[Tensor, "*h m n"], Any]:
        """Scores of a block of tokens; and what `gather` needs of them."""

    @abstractmethod
    def gather(self, seen: Any, weights: Float[Tensor, "*h m n"]) -> tuple[Float[Tensor, "*h _ n"], ...]:
        """Sums over the tokens: of the weights, then of what is weighted with them."""

    def add(self, sums: list[Tensor], seen: Any, weights: Float[Tensor, "*h m n"]) -> list[Tensor]:
        """What `gather` finds, on top of the sums of other blocks."""
        return [x.add_(y) for x, y in zip(sums, self.gather(seen, weights), strict=True)]

    def cut(self, tensors: dict[str, Tensor], block: Block) -> dict[str, Tensor]:
        """Views of what a block needs."""
        return {name: x[..., slice(*block), :] if name in self.per_token else x for name, x in tensors.items()}

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.segment.device

    def present(self, block: Block) -> Bool[Tensor, "*b m"] | None:
        """True where there is a token; None: everywhere."""
        return None if self.segment.mask is None else self.of_each(self.segment.mask)[..., slice(*block)]

    def of_each(self, x: Tensor) -> Tensor:
        """What a segment has, [#b, m, ...], of each sample that is asked."""
        return x.expand(*self.batch, *x.shape[1:]) if self.batch else x[0]

    def hide_absent(self, scores: Float[Tensor, "*h m n"], block: Block) -> Float[Tensor, "*h m n"]:
        """Minus infinity where there is no token."""
        present = self.present(block)
        return scores if present is None else scores.masked_fill(~present[..., None], -math.inf)


class MadeRows(Rows):
    """Tokens that are made, a block at a time, and normed."""

    def __init__(self, segment: Segment, dtype: torch.dtype) -> None:
        super().__init__(segment, dtype)
        weight, bias = segment.projection or (None, None)
        positions = segment.positions if isinstance(segment.positions, Tensor) else None
        parts = {
            "content": None if segment.content is None else self.of_each(segment.content),
            "positions": positions if positions is None or positions.ndim == 2 else positions[0],
            "constant": segment.constant,
            "stand_in": segment.stand_in,
            "weight": weight,
            "bias": bias,
        }
        self.tensors = {name: part for name, part in parts.items() if part is not None}

    def made(self, tensors: dict[str, Tensor], block: Block) -> Float[Tensor, "m c"]:
        """The tokens of a block."""
        part: dict[str, Any] = {name: tensors[name][None] for name in self.per_token if name in tensors}
        part |= {name: tensors[name] for name in ("constant", "stand_in") if name in tensors}
        projection = (tensors["weight"], tensors["bias"]) if "weight" in tensors else None
        return replace(self.segment.block(*block), **part, projection=projection).dense(self.dtype)[0]

    def normed(self, tensors: dict[str, Tensor], block: Block) -> Float[Tensor, "m c"]:
        """Behind a layer norm without scale and shift."""
        tokens = self.made(tensors, block)
        return F.layer_norm(tokens, tokens.shape[-1:], eps=LAYER_NORM_EPSILON)


class AbsorbedRows(MadeRows):
    """`folded` [c, n] asks normed tokens."""

    def __init__(self, segment: Segment, folded: Tensor, added: Tensor | None = None) -> None:
        super().__init__(segment, folded.dtype)
        self.tensors |= {"folded": folded} | ({} if added is None else {"added": added})

    def look(self, tensors: dict[str, Tensor], block: Block) -> tuple[Tensor, Tensor]:
        """Normed tokens times `folded`."""
        x = self.normed(tensors, block)
        scores = matmul(x, tensors["folded"])
        scores = scores + tensors["added"] if "added" in tensors else scores
        return self.hide_absent(scores, block), x

    def gather(self, seen: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        """Sums of weights and of normed tokens."""
        return weights.sum(-2, keepdim=True), matmul(seen.mT, weights)

    def expand(self, sums: Sequence[Tensor]) -> Float[Tensor, "c n"]:
        """The weighted sum of the normed tokens."""
        return sums[0]


class ProjectedRows(MadeRows):
    """`asked` [h, n, d] asks `key` [h, d, c] times normed tokens, for `value` [h, e, c] times them."""

    def __init__(
        self, segment: Segment, asked: Tensor, key: Tensor, value: Tensor | None = None, added: Tensor | None = None
    ) -> None:
        super().__init__(segment, asked.dtype)
        given = {"asked": asked, "key": key, "value": value, "added": added}
        self.tensors |= {name: part for name, part in given.items() if part is not None}

    def look(self, tensors: dict[str, Tensor], block: Block) -> tuple[Tensor, Tensor | None]:
        """Keys times what asks them."""
        x = self.normed(tensors, block)
        keys, values = (
            rearrange(linear(x, tensors[name].flatten(0, 1)), "m (h d) -> h m d", h=len(tensors[name]))
            if name in tensors
            else None
            for name in ("key", "value")
        )
        assert keys is not None
        scores = keys @ tensors["asked"].mT
        scores = scores + tensors["added"].unflatten(0, (len(scores), 1, -1)) if "added" in tensors else scores
        return self.hide_absent(scores, block), values

    def gather(self, seen: Tensor | None, weights: Tensor) -> tuple[Tensor, ...]:
        """Sums of weights and of values."""
        assert seen is not None
        return weights.sum(-2, keepdim=True), seen.mT @ weights


class SeparableRows(Rows):
    """Tokens of a grid [rows, columns] that are never made; `folded` [c, n] asks them behind their norm.

    `folded` [b, c, n] asks all samples of the segment together: then every array begins with b.
    """

    def __init__(self, segment: Segment, folded: Tensor, added: Tensor | None = None) -> None:
        super().__init__(segment, folded.dtype, folded.shape[:-2])
        tables, dtype = segment.positions, self.dtype
        assert isinstance(tables, AxisTables)
        *self.outer, self.inner = tables.tables  # of rows, of columns
        self.width = len(self.inner)
        *outer, inner = tables.channels
        content = None if segment.content is None else self.of_each(segment.content)
        padding = None if segment.constant is None else segment.constant.to(dtype)
        # A token's channels: content, then positions, then padding; `places` says which are whose.
        own = 0 if content is None else content.shape[-1]
        padded = range(own + tables.num_channels, own + tables.num_channels + (0 if padding is None else len(padding)))
        self.places = [
            torch.tensor(place, dtype=torch.long, device=folded.device)
            for place in (range(own), [own + i for i in itertools.chain(*outer)], [own + i for i in inner], padded)
        ]
        self.tensors = {} if content is None else {"content": content}
        self.tensors |= {} if padding is None else {"padding": padding}
        folded, offset, norm = self._through_projection(folded)
        on_content, on_rows, on_columns, on_padding = (folded[..., place, :] for place in self.places)
        offset = offset if padding is None else offset + padding @ on_padding
        columns = [(matmul(part, on_columns), _norm_of(part, norm)) for part in self.inner.parts(dtype)]
        on_columns, norm_columns = (torch.cat(parts, -2) for parts in zip(*columns, strict=True))
        self.tensors |= {"on_rows": on_rows, "offset": offset, "on_columns": on_columns, "norm_columns": norm_columns}
        self.tensors |= {} if content is None else {"on_content": on_content}
        self.tensors |= {} if added is None else {"added": added}

    def _through_projection(
        self, folded: Float[Tensor, "*b c n"]
    ) -> tuple[Float[Tensor, "*b own n"], Float[Tensor, "*b n"], Float[Tensor, "p c"] | None]:
        """What is asked of tokens in their own width, a constant, the columns' map; keeps what stand-ins need."""
        segment, offset = self.segment, folded.new_zeros(*self.batch, folded.shape[-1])
        if segment.hidden is not None:
            assert segment.stand_in is not None
            token = F.layer_norm(segment.stand_in.to(self.dtype), segment.stand_in.shape, eps=LAYER_NORM_EPSILON)
            self.tensors |= {"hidden_token": token, "on_hidden": (token @ folded)[..., None, :]}
        if segment.projection is None:
            return folded, offset, None
        weight, bias = (x.to(self.dtype) for x in segment.projection)
        folded, offset = weight.T @ folded, bias @ folded
        weight, bias = weight - weight.mean(0), bias - bias.mean()
        of_content, of_rows, of_columns, of_padding = (weight[:, place].T for place in self.places)
        bias = bias + self.tensors["padding"] @ of_padding if "padding" in self.tensors else bias
        self.tensors |= {"norm_rows": of_rows, "norm_offset": bias}
        self.tensors |= {"norm_content": of_content} if "content" in self.tensors else {}
        return folded, offset, of_columns

    def look(self, tensors: dict[str, Tensor], block: Block) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """[scale content | scale row | hidden | 1] times what is asked of them, then columns are added."""
        rows = self.row_features(block)
        scale = self.inverse_deviation(tensors, rows)
        hidden = self.hidden(block)
        scale = scale if hidden is None else scale.masked_fill(hidden, 0)
        one_hot = torch.eye(len(rows), dtype=self.dtype, device=rows.device).repeat_interleave(self.width, 0)
        left, right = [scale[..., None] * one_hot], [rows @ tensors["on_rows"] + tensors["offset"][..., None, :]]
        if "content" in tensors:
            left = [*left, scale[..., None] * tensors["content"].to(self.dtype)]
            right = [*right, tensors["on_content"]]
        if hidden is not None:
            left, right = [*left, hidden[..., None].to(self.dtype)], [*right, tensors["on_hidden"]]
        added = tensors.get("added", torch.zeros_like(right[0][..., 0, :]))
        compact = torch.cat([*left, torch.ones_like(scale)[..., None]], -1)
        scores = matmul(compact, torch.cat([*right, added[..., None, :]], -2))
        scale = scale.unflatten(-1, (len(rows), self.width))[..., None]
        scores.unflatten(-2, (len(rows), self.width)).addcmul_(scale, tensors["on_columns"][..., None, :, :])
        return self.hide_absent(scores, block), (compact, scale, rows)

    def gather(self, seen: tuple[Tensor, Tensor, Tensor], weights: Tensor) -> tuple[Tensor, ...]:
        """Sums of weights; of scaled content and hidden ones; of scaled row features; of scales; by column."""
        columns = weights.new_zeros(*weights.shape[:-2], self.width, weights.shape[-1])
        return *self._of_all(seen, weights), self._by_column(columns, seen, weights)

    def add(
        self, sums: list[Tensor], seen: tuple[Tensor, Tensor, Tensor], weights: Float[Tensor, "*h m n"]
    ) -> list[Tensor]:
        """The sums by column are as large as a block: they grow where they are."""
        *of_all, columns = sums
        grown = [x.add_(y) for x, y in zip(of_all, self._of_all(seen, weights), strict=True)]
        return [*grown, self._by_column(columns, seen, weights)]

    @staticmethod
    def _of_all(seen: tuple[Tensor, Tensor, Tensor], weights: Tensor) -> tuple[Tensor, ...]:
        compact, _, rows = seen
        sums = matmul(compact.mT, weights)
        of_rows, rest, total = sums.split([len(rows), sums.shape[-2] - len(rows) - 1, 1], -2)
        return total, rest, rows.T @ of_rows, of_rows.sum(-2, keepdim=True)

    def _by_column(self, columns: Tensor, seen: tuple[Tensor, Tensor, Tensor], weights: Tensor) -> Tensor:
        _, scale, rows = seen
        by_row = weights.unflatten(-2, (len(rows), self.width))
        for row in range(len(rows)):  # one row after the other: the weights are read once, and not written again
            columns.addcmul_(by_row[..., row, :, :], scale[..., row, :, :])
        return columns

    def expand(self, sums: Sequence[Tensor]) -> Float[Tensor, "*b c n"]:
        """The weighted sum of the normed tokens."""
        rest, rows, scales, columns = sums
        content = len(self.places[0])
        parts = [rest[..., :content, :], rows, self._weighted_columns(columns)]
        parts += [self.tensors["padding"][:, None] * scales] if "padding" in self.tensors else []
        x = torch.cat(parts, -2)[..., torch.cat(self.places).argsort(), :]
        if self.segment.projection is not None:
            weight, bias = (x.to(self.dtype) for x in self.segment.projection)
            x = weight @ x + bias[:, None] * scales
        x = x - x.mean(-2, keepdim=True)
        return x + self.tensors["hidden_token"][:, None] * rest[..., -1:, :] if "hidden_token" in self.tensors else x

    def _weighted_columns(self, weights: Float[Tensor, "*b w n"]) -> Float[Tensor, "*b p n"]:
        """Sums over the columns: of their features, weighted."""
        found, first = weights.new_zeros(()), 0
        for part in self.inner.parts(self.dtype):
            found = found + matmul(part.T, weights[..., first : first + len(part), :])
            first += len(part)
        return found

    def hidden(self, block: Block) -> Bool[Tensor, "*b m"] | None:
        """True where the mask token replaces a token; None: nowhere."""
        return None if self.segment.hidden is None else self.of_each(self.segment.hidden)[..., slice(*block)]

    def row_features(self, block: Block) -> Float[Tensor, "r p"]:
        """Features of the block's rows."""
        first, last = (place // self.width for place in block)
        places = torch.unravel_index(torch.arange(first, last, device=self.device), tuple(map(len, self.outer)))
        return torch.cat([table.at(place).to(self.dtype) for table, place in zip(self.outer, places, strict=True)], -1)

    def inverse_deviation(self, tensors: dict[str, Tensor], rows: Float[Tensor, "r p"]) -> Float[Tensor, "*b m"]:
        """1 / std of each token of a block."""
        if self.segment.projection is not None:
            return self._of_projected(tensors, rows)
        mean, variance = tensors["norm_columns"][None].unbind(-1)
        parts = [_moments(rows[:, None]), (len(self.places[2]), mean, variance)]
        parts += [_moments(tensors["padding"])] if "padding" in tensors else []
        if "content" in tensors:
            content = tensors["content"].to(self.dtype)
            parts += [_moments(content.unflatten(-2, (len(rows), self.width)))]
        # Chan's formula: a sum of terms that are not negative; mean of squares minus square of mean would cancel.
        zero = rows.new_zeros(len(rows), self.width)
        channels = sum(count for count, _, _ in parts)
        mean = sum((count * own for count, own, _ in parts), zero) / channels
        variance = (
            sum((count * (own_variance + (own - mean) ** 2) for count, own, own_variance in parts), zero) / channels
        )
        return _inverse_root(variance).flatten(-2).expand(*self.batch, -1)

    def _of_projected(self, tensors: dict[str, Tensor], rows: Float[Tensor, "r p"]) -> Float[Tensor, "*b m"]:
        """The same behind a projection: its centred output is made, a block at a time."""
        x = (rows @ tensors["norm_rows"] + tensors["norm_offset"])[:, None] + tensors["norm_columns"]
        if "content" in tensors:
            content = tensors["content"].to(self.dtype) @ tensors["norm_content"]
            x = x + content.unflatten(-2, (len(rows), self.width))
        return _inverse_root((x * x).mean(-1)).flatten(-2).expand(*self.batch, -1)


def blocks_of(rows: Rows, block_size: int) -> list[Block]:
    """Blocks of about this many tokens; of whole rows where tokens have rows."""
    if rows.device.type == "cpu":
        keep_heap()
    unit = rows.width if isinstance(rows, SeparableRows) else 1
    count, size = rows.segment.num_tokens, max(block_size // unit, 1) * unit
    return [(first, min(first + size, count)) for first in range(0, count, size)]


@cache
def keep_heap() -> None:
    """Let the C library keep what a block frees for the next one.

    glibc gives the top of its heap back to the system where that is more than twice the largest array that ever had a
    mapping of its own and was freed, up to 32 MiB: the next block would find no page there. This one is never touched.
    """
    torch.empty(HEAP_BYTES, dtype=torch.uint8)


def _norm_of(columns: Float[Tensor, "w p"], projection: Float[Tensor, "p c"] | None) -> Float[Tensor, "w _"]:
    """What the norm of a token needs of its column: mean and variance, or its part of the centred projected token."""
    return columns @ projection if projection is not None else torch.stack(_moments(columns)[1:], -1)


def _inverse_root(variance: Float[Tensor, "*b m"]) -> Float[Tensor, "*b m"]:
    """1 / std; NaN where the variance is infinite: 0 would mean that there is no token."""
    return torch.where(variance.isinf(), torch.nan, torch.rsqrt(variance + LAYER_NORM_EPSILON))


def _moments(x: Float[Tensor, "*b c"]) -> tuple[int, Float[Tensor, "*b"], Float[Tensor, "*b"]]:
    """Number of channels, their mean and variance."""
    mean = x.mean(-1)
    variance = (x - mean[..., None]).square().mean(-1)  # torch.var_mean takes ten times as long over few channels
    return x.shape[-1], mean, variance
