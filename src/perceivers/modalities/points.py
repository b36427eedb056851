"""Points, at which an output is decoded, and parts, pieces of an input that are read one by one.

Letters: B batch, O queries, F query width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perceivers.core.precision import floats
from perceivers.core.tokens import Segment
from perceivers.modalities.raw import as_mask, as_tensor, check_index


@dataclass(frozen=True)
class Indices:
    """Points given by the numbers of an output's queries, row-major."""

    index: Int[Tensor, "*b o"] | Any
    """[O] for the whole batch, or [B, O]; a tensor, an array or a list."""
    mask: Bool[Tensor, "b o"] | Any = None
    """True where a point is valid; None: all are."""


@dataclass(frozen=True)
class Coordinates:
    """Points at any coordinates, in the units of the data."""

    coordinates: Float[Tensor, "*b o axes"] | Any
    """[O, axes] for the whole batch, or [B, O, axes]; finite numbers in a tensor, an array or lists."""
    mask: Bool[Tensor, "b o"] | Any = None
    """True where a point is valid; None: all are."""


@dataclass(frozen=True)
class Queries:
    """Query vectors that the caller provides."""

    queries: Float[Tensor, "*b o f"] | Any
    """[O, F] for the whole batch, or [B, O, F]; a tensor, an array or lists."""
    mask: Bool[Tensor, "b o"] | Any = None
    """True where a query is valid; None: all are."""


Points = Indices | Coordinates | Queries
"""Points at which an output is decoded; None in place of them means everywhere."""


@dataclass(frozen=True)
class Part:
    """A block of an input on a grid, which is read separately from the rest."""

    values: Any
    """Values of the block, in the form of a whole input."""
    start: tuple[int, ...] | Any
    """First position of the block along each axis of the whole input."""
    size: tuple[int, ...] | None = None
    """Size of the whole input; None: the size in training."""

    def extent(self) -> "Extent":
        """Return the extent of the block within the whole input."""
        values = self.values["values"] if isinstance(self.values, Mapping) else self.values
        stop = tuple(at + n for at, n in zip(self.start, values.shape[1:], strict=False))
        return Extent(tuple(self.start), stop, self.size)


@dataclass(frozen=True)
class Extent:
    """The extent of a part of an input on a grid."""

    start: tuple[int, ...]
    """First position along each axis."""
    stop: tuple[int, ...]
    """Position after the last along each axis."""
    size: tuple[int, ...] | None
    """Size of the whole input; None: the size in training."""

    def check_apart(self, name: str, other: "Extent") -> None:
        """Raise a ValueError unless both are parts of the same whole that do not overlap."""
        if self.size != other.size:
            raise ValueError(f"input {name!r} is read in parts of wholes of two sizes, {self.size} and {other.size}")
        ends = zip(self.start, self.stop, other.start, other.stop, strict=True)
        if all(start < other_stop and other_start < stop for start, stop, other_start, other_stop in ends):
            parts = f"{self.start} to {self.stop} and {other.start} to {other.stop}"
            raise ValueError(f"input {name!r} is read twice: the parts {parts} overlap")


def at_points(segment: Segment, points: Points | None) -> Segment:
    """Return all of a segment's queries, or those at Indices; ValueError for other points."""
    if points is None:
        return segment
    if not isinstance(points, Indices):
        raise ValueError(f"this output can be decoded at Indices only, not at {type(points).__name__}")
    check_index(points.index, segment.num_tokens, "index", "queries of this output")
    if segment.num_tokens == 1 and not points.index.shape[-1]:
        raise ValueError("no indices, but this output has one query: leave it out of outputs=")
    queries = segment.at(points.index)
    if points.mask is None:
        return queries
    return replace(queries, mask=points.mask if queries.mask is None else queries.mask & points.mask)


def given_points(points: Any, device: torch.device) -> Points:
    """Return a caller's points as tensors on the device, checked for their type and number of axes."""
    if not isinstance(points, Points):
        raise ValueError(f"points of type {type(points).__name__}: give Indices, Coordinates or Queries")
    # `rank` counts the axes without the batch.
    name = {Indices: "index", Coordinates: "coordinates", Queries: "queries"}[type(points)]
    x, rank = as_tensor(getattr(points, name), device), 1 if isinstance(points, Indices) else 2
    if x.ndim not in (rank, rank + 1) or (x.ndim > rank and not x.shape[0]):
        raise ValueError(f"{name} of shape {tuple(x.shape)}, expected {rank} axes, or {rank + 1} with the batch first")
    if not isinstance(points, Indices):
        x = floats(x)
    elif x.numel() and (x.is_floating_point() or x.dtype == torch.bool):
        raise ValueError(f"index of type {x.dtype}, expected whole numbers, each of a query")
    else:
        x = x.long()
    # The mask is [B, O] or [1, O], with the points' O and batch.
    mask = None if points.mask is None else as_mask(as_tensor(points.mask, device))
    if mask is not None:
        mask, count = mask if mask.ndim > 1 else mask[None], x.shape[x.ndim - rank]
        batches = {len(mask), len(x) if x.ndim > rank else 1} - {1}
        if mask.ndim != 2 or mask.shape[1] != count or len(batches) > 1:
            raise ValueError(f"mask of shape {tuple(mask.shape)}, but {name} of shape {tuple(x.shape)}")
    checked: Points = type(points)(x, mask)
    return checked


def share_of(segment: Segment, rank: int, world: int) -> Segment:
    """Return the queries of process `rank` of `world`: a contiguous block, on a grid whole slices of axis 0."""
    grid = segment.grid
    size, inside = (segment.num_tokens, 1) if grid is None else (grid[0], math.prod(grid[1:]))
    first, last = (size * number // world for number in (rank, rank + 1))
    if grid is None:
        return segment.block(first, last)
    tokens = slice(first * inside, last * inside)
    return segment.taken(lambda x: x[:, tokens], lambda tables: tables.slices(first, last), (last - first, *grid[1:]))
