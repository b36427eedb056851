"""Tokens: what the encoder reads and the decoder is queried with. They are stored as their parts and made when needed.

    token = [content | positions | padding]  or  [content + positions | padding],  then a projection, then mask tokens

Letters: B batch, M tokens, C width of a token.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perceivers.core.checks import has_values, require
from perceivers.core.layers import floats, in_own_range, linear, precise


@dataclass(frozen=True)
class Segment:
    """M tokens of one input or queries of one output, as their parts. There are content, positions or padding at least.

    A batch of 1 (or positions without a batch) stands for "the same for every sample".
    """

    content: Float[Tensor, "#b m c"] | None = None
    """The data."""
    positions: Any = None
    """Position features: [M, P], [B, M, P], or `positions.AxisTables`, from which they are made when needed."""
    positions_added: bool = False
    """Positions are added to the content instead of concatenated with it."""
    padding: Float[Tensor, " k"] | None = None
    """Trained channels behind each token, which bring it to a common width."""
    projection: tuple[Float[Tensor, "width raw"], Float[Tensor, " width"]] | None = None
    """Weight and bias of a linear map of all that to a common width, applied when the tokens are made."""
    mask: Bool[Tensor, "#b m"] | None = None
    """True where the token is valid; None: all are."""
    grid: tuple[int, ...] | None = None
    """The grid that the M tokens form, row-major; None: they form none."""
    mask_token: Float[Tensor, " width"] | None = None
    """What replaces a masked token, in the full width."""
    masked: Bool[Tensor, "#b m"] | None = None
    """True where the mask token replaces the token."""
    extent: Any = None
    """Which part of its input this is, with `check_apart(name, other)`; None: all of it."""

    @property
    def num_tokens(self) -> int:
        """M."""
        if self.content is not None:
            return self.content.shape[1]
        assert self.positions is not None
        return self.positions.shape[-2] if isinstance(self.positions, Tensor) else self.positions.num_positions

    @property
    def raw_channels(self) -> int:
        """Width before a projection."""
        content = 0 if self.content is None else self.content.shape[-1]
        padding = 0 if self.padding is None else len(self.padding)
        if self.positions is None or (self.positions_added and content):
            return content + padding
        positions = self.positions
        return content + padding + (positions.shape[-1] if isinstance(positions, Tensor) else positions.num_channels)

    @property
    def batch_size(self) -> int:
        """B; 1 if the tokens are the same for every sample."""
        positions = self.positions if isinstance(self.positions, Tensor) and self.positions.ndim == 3 else None
        parts = (self.content, positions, self.mask, self.masked)
        return max([1, *(part.shape[0] for part in parts if part is not None)])

    @property
    def device(self) -> torch.device:
        """Device of the tokens."""
        part = self.positions if self.content is None else self.content
        assert part is not None
        return part.device

    def dense(self, dtype: torch.dtype) -> Float[Tensor, "b m width"]:
        """Return the tokens as an array."""
        content = None if self.content is None else self.content.to(dtype)
        positions = self._positions(dtype)
        if content is not None and positions is not None and self.positions_added:
            parts = [content + positions]
        else:
            parts = [part for part in (content, positions) if part is not None]
        if self.padding is not None:
            parts.append(self.padding.to(dtype).expand(1, self.num_tokens, -1))
        x = _concatenated(parts, dim=-1)
        if self.projection is not None:
            weight, bias = self.projection
            with in_own_range(x.device):
                x = linear(x, weight.to(dtype), bias.to(dtype))
        if self.masked is None:
            return x
        assert self.mask_token is not None
        return torch.where(self.masked[..., None], self.mask_token.to(dtype), x)

    def rows(self, index: Int[Tensor, "*b o"]) -> "Segment":
        """Return some of the tokens, counted row-major; indices are shared by the batch or of each sample."""
        index = index if index.ndim == 2 else index[None]

        def take(x: Tensor) -> Tensor:
            batch = max(x.shape[0], index.shape[0])
            rows = index.reshape(*index.shape, *[1] * (x.ndim - 2)).expand(batch, -1, *x.shape[2:])
            return x.expand(batch, *x.shape[1:]).gather(1, rows)

        return self._taken(take, lambda tables: tables.rows(index), None)

    def block(self, start: int, stop: int) -> "Segment":
        """Return neighbouring tokens, counted row-major, without a copy."""

        def rows(tables: Any) -> Tensor:
            return tables.rows(torch.arange(start, stop, device=self.device))

        return self._taken(lambda x: x[:, start:stop], rows, None)

    def share(self, rank: int, world: int) -> "Segment":
        """Return the part of one of `world` processes: neighbouring tokens; of a grid, slices of its first axis."""
        size, inside = (self.num_tokens, 1) if self.grid is None else (self.grid[0], math.prod(self.grid[1:]))
        first, last = (size * number // world for number in (rank, rank + 1))
        if self.grid is None:
            return self.block(first, last)
        tokens = slice(first * inside, last * inside)
        grid = (last - first, *self.grid[1:])
        return self._taken(lambda x: x[:, tokens], lambda tables: tables.slices(first, last), grid)

    def sample(self, number: int) -> "Segment":
        """Return one sample of the batch, as a batch of one."""
        return self._taken(lambda x: x[number : number + 1] if len(x) > 1 else x, lambda tables: tables, self.grid)

    def in_range(self, dtype: torch.dtype) -> "Segment":
        """Return the segment with NaN, which is NaN in every algorithm, for numbers too large to be normed."""
        limited: dict[str, Any] = {name: _within(x, limit) for name, x, limit in self._ranges(dtype)}
        return replace(self, **limited)

    def is_in_range(self, dtype: torch.dtype) -> Bool[Tensor, "*b m 1"] | None:
        """Return which tokens can be normed, in at least float32: no number NaN or too large; None: all."""
        dtype = torch.promote_types(dtype, torch.float32)
        found = [_peaks(x, -1, keepdim=True) <= limit for _, x, limit in self._ranges(dtype)]
        return reduce(torch.logical_and, found) if found else None

    def _ranges(self, dtype: torch.dtype) -> list[tuple[str, Tensor, Tensor | float]]:
        """Return the parts that hold data, by name, and how large their numbers may be.

        The squares that a norm adds up must not overflow. Behind a projection, by Cauchy and Schwarz, a token is at
        most as long as before it times the norm of the weight.
        """
        found: list[tuple[str, Tensor, Tensor | float]] = []
        first = 0
        for name, x in (("content", self.content), ("positions", self.positions if self.grid is None else None)):
            if isinstance(x, Tensor) and x.numel():
                columns = slice(first, first + x.shape[-1])
                limit: Tensor | float = math.sqrt(torch.finfo(dtype).max / x.shape[-1]) / 2
                if self.projection is not None:
                    weight = precise(self.projection[0].detach()[:, columns])
                    limit = limit / torch.linalg.vector_norm(weight).clamp(min=1)
                found.append((name, x, limit))
                first = 0 if self.positions_added else columns.stop
        return found

    def _taken(
        self,
        take: Callable[[Tensor], Tensor],
        take_tables: Callable[[Any], Any],
        grid: tuple[int, ...] | None,
    ) -> "Segment":
        """Return a part of the tokens: what `take` takes of each array that has one entry a token."""
        content, mask, masked = (None if x is None else take(x) for x in (self.content, self.mask, self.masked))
        positions = self.positions
        if isinstance(positions, Tensor):
            positions = take(positions) if positions.ndim == 3 else take(positions[None])
        elif positions is not None:
            positions = take_tables(positions)
        return replace(self, content=content, positions=positions, mask=mask, masked=masked, grid=grid)

    def _positions(self, dtype: torch.dtype) -> Tensor | None:
        if self.positions is None:
            return None
        dense = self.positions.to(dtype) if isinstance(self.positions, Tensor) else self.positions.dense(dtype)
        return dense if dense.ndim == 3 else dense[None]


@dataclass(frozen=True)
class Tokens:
    """Segments of one width, concatenated along the tokens, by name."""

    segments: Mapping[str, Segment] = field(default_factory=dict)

    def dense(self, dtype: torch.dtype) -> Float[Tensor, "b m c"]:
        """Return all tokens as an array."""
        if not self.segments:
            raise ValueError("no tokens: at least one input or output is needed")
        return _concatenated([segment.dense(dtype) for segment in self.segments.values()], dim=1)

    def mask(self) -> Bool[Tensor, "b m"] | None:
        """Return True where a token is valid; None: all are."""
        segments = self.segments.values()
        device = next((segment.mask.device for segment in segments if segment.mask is not None), None)
        if device is None:
            return None
        return _concatenated([_mask_of(segment, device) for segment in segments], dim=1)

    def in_range(self, dtype: torch.dtype) -> "Tokens":
        """Return the tokens with NaN for numbers that are too large to be normed in this precision."""
        return Tokens({name: segment.in_range(dtype) for name, segment in self.segments.items()})

    def split(self, x: Tensor, dim: int = 1) -> dict[str, Tensor]:
        """Split an array along its axis of tokens into the segments, by name."""
        sizes = [segment.num_tokens for segment in self.segments.values()]
        return dict(zip(self.segments, x.split(sizes, dim), strict=True))


def token_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which a model of this precision has its tokens before they are normed.

    float16 ends at 65,504, which raw values may exceed; behind the norm their scale does not matter.
    """
    return torch.float32 if dtype == torch.float16 else dtype


def as_tokens(x: Any, mask: Any, channels: int, device: torch.device) -> Tokens:
    """Return an array [B, M, C] with its mask, True (or 1) where a token is valid, as Tokens; ValueError else."""
    try:
        x, mask = (v if v is None or isinstance(v, Tensor) else torch.as_tensor(v, device=device) for v in (x, mask))
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"tokens [B, M, {channels}] of real numbers and a mask [B, M] or none are needed") from None
    is_array = x is not None and x.ndim == 3 and len(x) > 0 and x.shape[-1] == channels and not x.is_complex()
    is_mask = mask is None or (
        is_array and mask.shape in (x.shape[:2], (1, x.shape[1])) and not mask.is_floating_point()
    )
    if not (is_array and is_mask and all(one is None or device.type in (one.device.type, "meta") for one in (x, mask))):
        found = ", ".join(f"{list(one.shape)} {one.dtype} on {one.device}" for one in (x, mask) if one is not None)
        needed = (
            f"tokens [B, M, {channels}] of real numbers on {device} and a mask [B, M] of booleans, or none, are needed"
        )
        raise ValueError(f"{needed}; found {found or 'none'}")
    if mask is not None:
        require(((mask == 0) | (mask == 1)).all(), lambda: "a mask holds other numbers than 0 and 1")
        mask = mask.bool()
    return Tokens({"tokens": Segment(content=zero_where_absent(floats(x), mask), mask=mask)})


def zero_where_absent(x: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"] | None) -> Float[Tensor, "b m c"]:
    """Return x with 0 where there is no token: NaN in padding would spread even through a weight of 0."""
    return x if mask is None else torch.where(mask[..., None], x, torch.zeros_like(x))


def _within(x: Tensor, limit: Tensor | float) -> Tensor:
    """Return numbers [..., m, c] as they are, but NaN for those beyond a limit."""
    if has_values(x) and not (x.is_cuda and torch.is_grad_enabled()):  # a training step there does not wait
        peaks = _peaks(x, (-2, -1))  # of each sample, without a copy
        if not ((peaks > limit) & peaks.isfinite()).any():
            return x
    return torch.where(x.abs() <= limit, x, torch.nan)


def _peaks(x: Tensor, dim: int | tuple[int, int], keepdim: bool = False) -> Tensor:
    return torch.linalg.vector_norm(x.detach(), math.inf, dim=dim, keepdim=keepdim)


def _mask_of(segment: Segment, device: torch.device) -> Bool[Tensor, "b m"]:
    ones = torch.ones(1, segment.num_tokens, dtype=torch.bool, device=device)
    return ones if segment.mask is None else segment.mask


def _concatenated(parts: list[Tensor], dim: int) -> Tensor:
    batch = max(part.shape[0] for part in parts)
    return torch.cat([part.expand(batch, *part.shape[1:]) for part in parts], dim) if len(parts) > 1 else parts[0]
