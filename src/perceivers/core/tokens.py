"""Tokens: what the encoder reads and the decoder is asked with. They know how they are made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perceivers.core.arguments import Range, floats, given, in_own_range, in_range, ranges_of
from perceivers.core.linear import linear
from perceivers.core.positions import AxisTables, PositionFeatures


@dataclass(frozen=True)
class Segment:
    """M tokens of one source: content, beside or plus position features, beside a constant. At least one of the three.

    A batch of 1 (or positions without a batch) stands for "the same for every sample".
    """

    content: Float[Tensor, "#b m c"] | None = None
    """What is there."""
    positions: PositionFeatures | None = None
    """Where it is."""
    positions_added: bool = False
    """Positions are added to the content instead of standing behind it."""
    constant: Float[Tensor, " k"] | None = None
    """The same for every token: padding to a common width."""
    projection: tuple[Float[Tensor, "width own"], Float[Tensor, " width"]] | None = None
    """Weight and bias of a linear map of all that to a common width; not made until it is asked for."""
    mask: Bool[Tensor, "#b m"] | None = None
    """True where the token exists; None: all do."""
    grid: tuple[int, ...] | None = None
    """The grid that the M tokens form, row-major; None: they form none."""
    stand_in: Float[Tensor, " width"] | None = None
    """Mask token: what a hidden token is replaced with, in the full width."""
    hidden: Bool[Tensor, "#b m"] | None = None
    """True where the mask token replaces the token."""

    @property
    def num_tokens(self) -> int:
        """M."""
        if self.content is not None:
            return self.content.shape[1]
        assert self.positions is not None
        if isinstance(self.positions, Tensor):
            return self.positions.shape[-2]
        return int(torch.Size(self.positions.grid).numel())

    @property
    def own_channels(self) -> int:
        """Width before a projection."""
        content = 0 if self.content is None else self.content.shape[-1]
        positions = self.positions
        beside = (
            0
            if positions is None or (self.positions_added and content)
            else (positions.num_channels if isinstance(positions, AxisTables) else positions.shape[-1])
        )
        return content + beside + (0 if self.constant is None else len(self.constant))

    @property
    def batch_size(self) -> int:
        """B; 1 if it is the same for every sample."""
        positions = self.positions if isinstance(self.positions, Tensor) and self.positions.ndim == 3 else None
        return max(
            [1, *(part.shape[0] for part in (self.content, positions, self.mask, self.hidden) if part is not None)]
        )

    @property
    def device(self) -> torch.device:
        """Where it is."""
        positions = self.positions.tables[0] if isinstance(self.positions, AxisTables) else self.positions
        part = self.content if self.content is not None else positions
        assert part is not None
        return part.device

    def dense(self, dtype: torch.dtype) -> Float[Tensor, "b m width"]:
        """The array of tokens."""
        content = None if self.content is None else self.content.to(dtype)
        positions = self._positions(dtype)
        if content is not None and positions is not None and self.positions_added:
            parts = [content + positions]
        else:
            parts = [part for part in (content, positions) if part is not None]
        if self.constant is not None:
            parts.append(self.constant.to(dtype).expand(1, self.num_tokens, -1))
        x = _join(parts, dim=-1)
        if self.projection is not None:
            weight, bias = self.projection
            with in_own_range(x.device):
                x = linear(x, weight.to(dtype), bias.to(dtype))
        if self.hidden is None:
            return x
        assert self.stand_in is not None
        return torch.where(self.hidden[..., None], self.stand_in.to(dtype), x)

    def ranges(self, dtype: torch.dtype) -> list[Range]:
        """Return the parts that hold data (positions on a grid do not) and how large their numbers may be."""
        parts = {"content": self.content, "positions": self.positions if self.grid is None else None}
        return ranges_of(parts, dtype, self.projection, self.positions_added)

    def rows(self, index: Int[Tensor, "*b o"]) -> "Segment":
        """Some of the tokens, counted row-major; indices shared by the batch or of each sample."""
        index = index if index.ndim == 2 else index[None]

        def take(x: Tensor) -> Tensor:
            batch = max(x.shape[0], index.shape[0])
            rows = index.reshape(*index.shape, *[1] * (x.ndim - 2)).expand(batch, -1, *x.shape[2:])
            return x.expand(batch, *x.shape[1:]).gather(1, rows)

        positions = self.positions
        if isinstance(positions, AxisTables):
            positions = positions.rows(index)
        elif positions is not None:
            positions = take(positions if positions.ndim == 3 else positions[None])
        return self._taken(take, positions, None)

    def block(self, start: int, stop: int) -> "Segment":
        """Neighbouring tokens, counted row-major, without a copy."""
        positions = self.positions
        if isinstance(positions, AxisTables):
            positions = positions.rows(torch.arange(start, stop, device=self.device))
        elif positions is not None:
            positions = positions[..., start:stop, :]
        return self._taken(lambda x: x[:, start:stop], positions, None)

    def share(self, rank: int, world: int) -> "Segment":
        """The part of one of `world` processes: neighbouring tokens; of a grid, slices of its first axis."""
        positions, grid = self.positions, self.grid
        if grid is None:
            return self.block(self.num_tokens * rank // world, self.num_tokens * (rank + 1) // world)
        inside = self.num_tokens // grid[0]
        first, last = (grid[0] * number // world for number in (rank, rank + 1))
        start, stop = first * inside, last * inside
        if isinstance(positions, AxisTables):
            positions = replace(positions, tables=(positions.tables[0].part(first, last), *positions.tables[1:]))
        elif positions is not None:
            positions = positions[..., start:stop, :]
        return self._taken(lambda x: x[:, start:stop], positions, (last - first, *grid[1:]))

    def sample(self, number: int) -> "Segment":
        """One sample of the batch, as a batch of one."""

        def take(x: Tensor) -> Tensor:
            return x[number : number + 1] if len(x) > 1 else x

        positions = self.positions
        if isinstance(positions, Tensor) and positions.ndim == 3:
            positions = take(positions)
        return self._taken(take, positions, self.grid)

    def _taken(
        self, take: Callable[[Tensor], Tensor], positions: PositionFeatures | None, grid: tuple[int, ...] | None
    ) -> "Segment":
        """A part of the tokens: of each array that has one entry a token what `take` takes."""
        content, mask, hidden = (None if x is None else take(x) for x in (self.content, self.mask, self.hidden))
        return replace(self, content=content, positions=positions, mask=mask, hidden=hidden, grid=grid)

    def _positions(self, dtype: torch.dtype) -> Tensor | None:
        if self.positions is None:
            return None
        dense = self.positions.dense(dtype) if isinstance(self.positions, AxisTables) else self.positions.to(dtype)
        return dense if dense.ndim == 3 else dense[None]


@dataclass(frozen=True)
class Tokens:
    """Segments of one width, one behind the other, by name."""

    segments: Mapping[str, Segment] = field(default_factory=dict)

    def dense(self, dtype: torch.dtype) -> Float[Tensor, "b m c"]:
        """The array of all tokens."""
        if not self.segments:
            raise ValueError("no tokens: at least one input or output is needed")
        return _join([segment.dense(dtype) for segment in self.segments.values()], dim=1)

    def mask(self) -> Bool[Tensor, "b m"] | None:
        """True where a token exists; None: all do."""
        if all(segment.mask is None for segment in self.segments.values()):
            return None
        device = next(segment.mask.device for segment in self.segments.values() if segment.mask is not None)
        masks = [
            torch.ones(1, segment.num_tokens, dtype=torch.bool, device=device) if segment.mask is None else segment.mask
            for segment in self.segments.values()
        ]
        return _join(masks, dim=1)

    def in_range(self, dtype: torch.dtype) -> "Tokens":
        """Return the tokens with NaN for numbers that are too large to be normed in this precision."""
        return Tokens({name: in_range(own, dtype) for name, own in self.segments.items()})

    def split(self, x: Tensor, dim: int = 1) -> dict[str, Tensor]:
        """Cut an array along its axis of tokens into the segments, by name."""
        sizes = [segment.num_tokens for segment in self.segments.values()]
        return dict(zip(self.segments, x.split(sizes, dim), strict=True))


def token_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which a model of this precision has its tokens before they are normed.

    float16 ends at 65,504, which raw values may exceed; behind the norm their scale does not matter.
    """
    return torch.float32 if dtype == torch.float16 else dtype


def as_tokens(x: Any, mask: Any, channels: int, device: torch.device) -> Tokens:
    """Return an array [B, M, C], with its mask, True (or 1) where a token exists, as Tokens."""
    found = given({"tokens": x, "mask": mask}, device)
    x, mask = found.get("tokens"), found.get("mask")
    if x is None or x.ndim != 3 or x.shape[-1] != channels or (mask is not None and mask.ndim != 2):
        shapes = {name: tuple(part.shape) for name, part in found.items()}
        raise ValueError(f"tokens [B, M, {channels}] and a mask [B, M] or none are needed, found {shapes}")
    return Tokens({"tokens": Segment(content=blank_where_absent(floats(x), mask), mask=mask)})


def blank_where_absent(x: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"] | None) -> Float[Tensor, "b m c"]:
    """0 where there is no token: NaN in padding would spread even through a weight of 0."""
    return x if mask is None else torch.where(mask[..., None], x, torch.zeros_like(x))


def _join(parts: list[Tensor], dim: int) -> Tensor:
    batch = max(part.shape[0] for part in parts)
    return torch.cat([part.expand(batch, *part.shape[1:]) for part in parts], dim) if len(parts) > 1 else parts[0]
