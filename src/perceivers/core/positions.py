"""Position features and coordinates on a grid, kept axis by axis and expanded to the grid only when needed.

Source: the official position_encoding.py, whose Fourier features are functions of one axis each.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class AxisTable(Protocol):
    """Features [n, P] of the n positions along an axis."""

    @property
    def device(self) -> torch.device:
        """Device of the features."""

    def __len__(self) -> int: ...

    def part(self, first: int, last: int) -> "AxisTable":
        """Return the table of the positions from `first` to before `last`."""

    def at(self, index: Int[Tensor, "*b"]) -> Float[Tensor, "*b p"]:
        """Return the features of positions by index."""

    def parts(self, dtype: torch.dtype) -> Iterator[Float[Tensor, "k p"]]:
        """Iterate over the features of all positions, a few neighbouring ones at a time."""


@dataclass(frozen=True)
class AxisTables:
    """Position features on a grid [n_1, ..., n_d], each a function of one axis alone: a table for each axis."""

    tables: tuple[AxisTable, ...]
    """Features of the positions along each axis."""
    channels: tuple[tuple[int, ...], ...]
    """Indices of the features that each table holds."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of the grid."""
        return tuple(len(table) for table in self.tables)

    @property
    def num_channels(self) -> int:
        """Width of the features, P."""
        return sum(map(len, self.channels))

    @property
    def num_positions(self) -> int:
        """Number of positions."""
        return math.prod(self.grid)

    @property
    def device(self) -> torch.device:
        """Device of the features."""
        return self.tables[0].device

    def slices(self, first: int, last: int) -> "AxisTables":
        """Return the features of the slices `first` to before `last` of the first axis."""
        return replace(self, tables=(self.tables[0].part(first, last), *self.tables[1:]))

    def dense(self, dtype: torch.dtype) -> Float[Tensor, "m p"]:
        """Return the features of every position, row-major."""
        features = torch.empty(*self.grid, self.num_channels, dtype=dtype, device=self.tables[0].device)
        for axis, (table, channels) in enumerate(zip(self.tables, self.channels, strict=True)):
            shape = [1] * len(self.tables)
            shape[axis] = len(table)
            features[..., list(channels)] = torch.cat([*table.parts(dtype)]).view(*shape, -1).expand(*self.grid, -1)
        return features.flatten(0, -2)

    def at(self, index: Int[Tensor, "*b o"]) -> Float[Tensor, "*b o p"]:
        """Return the features of positions by row-major index."""
        per_axis = torch.unravel_index(index, self.grid)
        found = [table.at(axis) for axis, table in zip(per_axis, self.tables, strict=True)]
        features = found[0].new_empty(*index.shape, self.num_channels)
        for part, channels in zip(found, self.channels, strict=True):
            features[..., list(channels)] = part
        return features


@dataclass(frozen=True)
class GridCoordinates:
    """Coordinates of the positions of a grid, kept axis by axis and expanded only when needed."""

    names: tuple[str | None, ...]
    """Name of each axis of the grid; None: it has no coordinates."""
    along: tuple[Float[Tensor, " _"], ...]
    """Coordinates of the positions along each axis."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of the grid."""
        return tuple(map(len, self.along))

    def at(self, index: Int[Tensor, "*b o"]) -> dict[str, Float[Tensor, "#b o"]]:
        """Return the coordinates of positions by row-major index, by axis."""
        index = index if index.ndim == 2 else index[None]
        per_axis = zip(self.names, self.along, torch.unravel_index(index, self.grid), strict=True)
        return {name: along[at] for name, along, at in per_axis if name is not None}

    def slices(self, first: int, last: int) -> "GridCoordinates":
        """Return the coordinates of the slices `first` to before `last` of the first axis."""
        return replace(self, along=(self.along[0][first:last], *self.along[1:]))

    def dense(self) -> dict[str, Float[Tensor, "1 m"]]:
        """Return the coordinates of every position, by axis."""
        return self.at(torch.arange(math.prod(self.grid), device=self.along[0].device))


PositionFeatures = AxisTables | Tensor
"""Features of positions: tables of a grid's axes, or an array [M, P] or [B, M, P]."""
