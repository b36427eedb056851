"""Tokens on a grid that are never assembled. algorithms.py has the algebra.

A token at row y and column x is t = [content | features of y | features of x | padding], perhaps projected.
With r = 1 / std t and `folded` [c, n] (A of algorithms.py) cut by channels into on_content, on_rows, ...:

    score = r (content . on_content + (rows on_rows)[y] + (columns on_columns)[x] + padding . on_padding) + added

A block's scores are one product, [r onehot(y) | r content | masked | 1] @ [rows on_rows + ...; on_content; ...], to
which r (columns on_columns)[x] is added. The weighted sum of normed tokens follows from the sums of e r content, of
e r by row and of e r by column.

Letters: y rows and x columns of a block of m = y x tokens, n query columns, c channels, p channels of positions.
Arrays that begin with *b have a sample axis if all samples are read together.
"""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceivers.core.fast.linear_maps import Norm
from perceivers.core.fast.onednn import matmul
from perceivers.core.fast.token_blocks import Block, TokenBlocks
from perceivers.core.positions import AxisTables
from perceivers.core.tokens import Segment

Seen = tuple[Tensor, Tensor, Tensor]
"""Results kept of a block: compact left factor [*b, m, k], r [*b, y, x, 1], features of the rows [y, p]."""


class SeparableBlocks(TokenBlocks):
    """Tokens of a grid [rows, columns], whose scores are sums of functions of row, column and content.

    `folded` [c, n] is for one sample; `folded` [b, c, n] reads all samples of the segment together.
    """

    def __init__(self, segment: Segment, norm: Norm, folded: Tensor, added: Tensor | None = None) -> None:
        super().__init__(segment, folded.dtype, norm, folded.shape[:-2])
        tables, dtype = segment.positions, self.dtype
        assert isinstance(tables, AxisTables)
        *self.row_tables, self.column_table = tables.tables
        self.unit = len(self.column_table)
        content = None if segment.content is None else self.per_sample(segment.content)
        padding = None if segment.padding is None else segment.padding.to(dtype)
        self.channel_groups = self._channel_groups(tables, content, padding)
        self.tensors = {} if content is None else {"content": content}
        self.tensors |= {} if padding is None else {"padding": padding}
        # The queries' weights on a token's channels before its projection, part by part.
        folded, offset, of_columns = self._through_projection(folded)
        on_content, on_rows, on_columns, on_padding = (folded[..., group, :] for group in self.channel_groups)
        offset = offset if padding is None else offset + padding @ on_padding
        # Contributions of a token's column to its score and to its norm.
        columns = [(matmul(part, on_columns), _norm_of(part, of_columns)) for part in self.column_table.parts(dtype)]
        on_columns, norm_columns = (torch.cat(parts, -2) for parts in zip(*columns, strict=True))
        self.tensors |= {"on_rows": on_rows, "offset": offset, "on_columns": on_columns, "norm_columns": norm_columns}
        self.tensors |= {} if content is None else {"on_content": on_content}
        self.tensors |= {} if added is None else {"added": added}

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.unit

    def _channel_groups(self, tables: AxisTables, content: Tensor | None, padding: Tensor | None) -> list[Tensor]:
        """Return the channel indices of a token's content, row features, column features and padding."""
        content_channels = 0 if content is None else content.shape[-1]
        end = content_channels + tables.num_channels
        *of_rows, of_columns = tables.channels
        groups = (
            range(content_channels),
            [content_channels + i for i in itertools.chain(*of_rows)],
            [content_channels + i for i in of_columns],
            range(end, end + (0 if padding is None else len(padding))),
        )
        return [torch.tensor(group, dtype=torch.long, device=self.device) for group in groups]

    def _through_projection(
        self, folded: Float[Tensor, "*b c n"]
    ) -> tuple[Float[Tensor, "*b raw n"], Float[Tensor, "*b n"], Float[Tensor, "p c"] | None]:
        """Return `folded` for tokens before their projection, a constant, and the columns' part of the projection.

        Also store the tensors that masked tokens and the norm of projected tokens need.
        """
        segment, offset = self.segment, folded.new_zeros(*self.batch, folded.shape[-1])
        if segment.masked is not None:
            assert segment.mask_token is not None
            token = self.norm(segment.mask_token.to(self.dtype))
            self.tensors |= {"masked_token": token, "on_masked": (token @ folded)[..., None, :]}
        if segment.projection is None:
            return folded, offset, None
        weight, bias = (x.to(self.dtype) for x in segment.projection)
        folded, offset = weight.T @ folded, bias @ folded
        weight, bias = self.norm.centred(weight, 0), self.norm.centred(bias, 0)
        of_content, of_rows, of_columns, of_padding = (weight[:, group].T for group in self.channel_groups)
        bias = bias + self.tensors["padding"] @ of_padding if "padding" in self.tensors else bias
        self.tensors |= {"norm_rows": of_rows, "norm_offset": bias}
        self.tensors |= {"norm_content": of_content} if "content" in self.tensors else {}
        return folded, offset, of_columns

    def scores(self, tensors: dict[str, Tensor], block: Block) -> tuple[Tensor, Seen]:
        """Return the scores, [r onehot(y) | r content | masked | 1] @ queries plus r times the columns' part."""
        rows = self.row_features(block)
        scale = self.inverse_deviation(tensors, rows)
        masked = self.masked(block)
        scale = scale if masked is None else scale.masked_fill(masked, 0)
        # Both factors of the product, part by part.
        one_hot = torch.eye(len(rows), dtype=self.dtype, device=rows.device).repeat_interleave(self.width, 0)
        left, right = [scale[..., None] * one_hot], [rows @ tensors["on_rows"] + tensors["offset"][..., None, :]]
        if "content" in tensors:
            left = [*left, scale[..., None] * tensors["content"].to(self.dtype)]
            right = [*right, tensors["on_content"]]
        if masked is not None:
            left, right = [*left, masked[..., None].to(self.dtype)], [*right, tensors["on_masked"]]
        added = tensors.get("added", torch.zeros_like(right[0][..., 0, :]))
        compact = torch.cat([*left, torch.ones_like(scale)[..., None]], -1)
        scores = matmul(compact, torch.cat([*right, added[..., None, :]], -2))
        # Add the columns' part in place.
        scale = scale.unflatten(-1, (len(rows), self.width))[..., None]
        scores.unflatten(-2, (len(rows), self.width)).addcmul_(scale, tensors["on_columns"][..., None, :, :])
        return self.mask_invalid(scores, block), (compact, scale, rows)

    def weighted_sums(self, seen: Seen, weights: Tensor) -> tuple[Tensor, ...]:
        """Return the sums of e; e r content, and e of masked tokens; e r times row features; e r; e r by column."""
        columns = weights.new_zeros(*weights.shape[:-2], self.width, weights.shape[-1])
        return *self._sums_by_row(seen, weights), self._add_by_column(columns, seen, weights)

    def accumulate(self, sums: list[Tensor], seen: Seen, weights: Float[Tensor, "*h m n"]) -> list[Tensor]:
        """Return the sums with a block's sums added; sums by column, as large as a block, grow without a copy."""
        *by_row, columns = sums
        grown = [x.add_(y) for x, y in zip(by_row, self._sums_by_row(seen, weights), strict=True)]
        return [*grown, self._add_by_column(columns, seen, weights)]

    @staticmethod
    def _sums_by_row(seen: Seen, weights: Tensor) -> tuple[Tensor, ...]:
        compact, _, rows = seen
        sums = matmul(compact.mT, weights)
        by_row, rest, total = sums.split([len(rows), sums.shape[-2] - len(rows) - 1, 1], -2)
        return total, rest, rows.T @ by_row, by_row.sum(-2, keepdim=True)

    def _add_by_column(self, columns: Tensor, seen: Seen, weights: Tensor) -> Tensor:
        _, scale, rows = seen
        by_row = weights.unflatten(-2, (len(rows), self.width))
        for row in range(len(rows)):  # row by row: the weights are read once, and no product with them is stored
            columns.addcmul_(by_row[..., row, :, :], scale[..., row, :, :])
        return columns

    def weighted_tokens(self, sums: Sequence[Tensor]) -> Float[Tensor, "*b c n"]:
        """Return the weighted sum of the normed tokens, from all of `weighted_sums` but the first."""
        rest, rows, scales, columns = sums
        content = len(self.channel_groups[0])
        # Sums of e r t, channels in the order of the token, then through the projection.
        parts = [rest[..., :content, :], rows, self._weighted_columns(columns)]
        parts += [self.tensors["padding"][:, None] * scales] if "padding" in self.tensors else []
        x = torch.cat(parts, -2)[..., torch.cat(self.channel_groups).argsort(), :]
        if self.segment.projection is not None:
            weight, bias = (x.to(self.dtype) for x in self.segment.projection)
            x = weight @ x + bias[:, None] * scales
        # Centring commutes with the sum; masked tokens are added as they are.
        x = self.norm.centred(x, -2)
        return x + self.tensors["masked_token"][:, None] * rest[..., -1:, :] if "masked_token" in self.tensors else x

    def _weighted_columns(self, weights: Float[Tensor, "*b x n"]) -> Float[Tensor, "*b p n"]:
        """Return the weighted sum of the columns' features, a few columns at a time."""
        found, first = weights.new_zeros(()), 0
        for part in self.column_table.parts(self.dtype):
            found = found + matmul(part.T, weights[..., first : first + len(part), :])
            first += len(part)
        return found

    def masked(self, block: Block) -> Bool[Tensor, "*b m"] | None:
        """Return True where the mask token replaces a token; None: nowhere."""
        return None if self.segment.masked is None else self.per_sample(self.segment.masked)[..., slice(*block)]

    def row_features(self, block: Block) -> Float[Tensor, "y p"]:
        """Return features of the block's rows."""
        first, last = (token // self.width for token in block)
        grid = tuple(map(len, self.row_tables))
        per_axis = torch.unravel_index(torch.arange(first, last, device=self.device), grid)
        features = [table.at(index).to(self.dtype) for table, index in zip(self.row_tables, per_axis, strict=True)]
        return torch.cat(features, -1)

    def inverse_deviation(self, tensors: dict[str, Tensor], rows: Float[Tensor, "y p"]) -> Float[Tensor, "*b m"]:
        """Return r = 1 / std of each token of a block."""
        if self.segment.projection is not None:
            return self._of_projected(tensors, rows)
        # Number of channels, mean and variance of each part of a token.
        mean, variance = tensors["norm_columns"][None].unbind(-1)
        parts = [_moments(rows[:, None]), (len(self.channel_groups[2]), mean, variance)]
        parts += [_moments(tensors["padding"])] if "padding" in tensors else []
        if "content" in tensors:
            content = tensors["content"].to(self.dtype)
            parts += [_moments(content.unflatten(-2, (len(rows), self.width)))]
        # Chan's formula: a sum of terms that are not negative; mean of squares minus square of mean would cancel.
        zero = rows.new_zeros(len(rows), self.width)
        channels = sum(count for count, _, _ in parts)
        mean = zero
        if self.norm.is_centred:
            mean = sum((count * part_mean for count, part_mean, _ in parts), zero) / channels
        variance = (
            sum((count * (variance + (part_mean - mean) ** 2) for count, part_mean, variance in parts), zero) / channels
        )
        return _inverse_root(variance, self.norm.epsilon).flatten(-2).expand(*self.batch, -1)

    def _of_projected(self, tensors: dict[str, Tensor], rows: Float[Tensor, "y p"]) -> Float[Tensor, "*b m"]:
        """Return r of projected tokens, from the block's centred output of the projection."""
        x = (rows @ tensors["norm_rows"] + tensors["norm_offset"])[:, None] + tensors["norm_columns"]
        if "content" in tensors:
            content = tensors["content"].to(self.dtype) @ tensors["norm_content"]
            x = x + content.unflatten(-2, (len(rows), self.width))
        return _inverse_root((x * x).mean(-1), self.norm.epsilon).flatten(-2).expand(*self.batch, -1)


def _norm_of(columns: Float[Tensor, "x p"], projection: Float[Tensor, "p c"] | None) -> Float[Tensor, "x _"]:
    """Return the columns' part of a token's norm: mean and variance, or their part of the centred projected token."""
    return columns @ projection if projection is not None else torch.stack(_moments(columns)[1:], -1)


def _inverse_root(variance: Float[Tensor, "*b m"], epsilon: float) -> Float[Tensor, "*b m"]:
    """Return 1 / std; NaN where the variance is infinite: 0 would mean that there is no token."""
    return torch.where(variance.isinf(), torch.nan, torch.rsqrt(variance + epsilon))


def _moments(x: Float[Tensor, "*b c"]) -> tuple[int, Float[Tensor, "*b"], Float[Tensor, "*b"]]:
    """Return the number of channels, their mean and variance."""
    mean = x.mean(-1)
    variance = (x - mean[..., None]).square().mean(-1)  # torch.var_mean takes ten times as long over few channels
    return x.shape[-1], mean, variance
