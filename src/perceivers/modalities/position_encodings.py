"""Position encodings: Fourier features or learned vectors, on any grid and at any coordinates.

    fourier(x) = [x, sin(pi f x) for each axis and frequency f, cos(pi f x) likewise],  f from 1 to max_resolution / 2,
                                                                                       or f = 1, 2, 4, ... (octaves)

Coordinates run from -1 to 1 along each axis; the axes come in the order of the array (row, then column). M positions
of a grid have P features each. Source: the official position_encoding.py.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from perceivers.core.arguments import require
from perceivers.core.checks import COUNT, SIZE, check_fields, check_ranges
from perceivers.core.layers import plain_linear, trained_vector
from perceivers.core.positions import AxisTables, PositionFeatures
from perceivers.core.precision import precise

CoordinateRule = Literal["inclusive", "exclusive"]

MOST_OCTAVES = 64
"""Most octaves: higher frequencies only show the rounding of coordinates."""

POSITIONS_AT_ONCE = 256
"""Number of positions of an axis whose features are computed at once."""


@dataclass(frozen=True)
class Fourier:
    """The coordinates, and their sines and cosines at frequencies from 1 to half the resolution."""

    num_bands: int = 32
    """Number of frequencies of each axis."""
    max_resolution: int | tuple[int, ...] | None = None
    """Samples along each axis that the highest frequency resolves; None: the size of the grid."""
    sine_only: bool = False
    """True: sines without cosines."""
    with_coordinates: bool = True
    """True: the features begin with the coordinates themselves."""
    project: int | None = None
    """Width of a linear map of the features; None: no map."""
    num_residual_layers: int = 0
    """Residual linear layers after the map, ReLU between them (official `n_extra_pos_mlp`)."""
    spacing: Literal["linear", "octaves"] = "linear"
    """Frequencies at equal distances (official), or 1, 2, 4, ..., which need no `max_resolution`."""
    kind: Literal["fourier"] = "fourier"
    """Name in schema files."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_ranges(self, {"num_bands": COUNT, "project": SIZE, "num_residual_layers": COUNT})
        if self.spacing == "octaves" and self.max_resolution is not None:
            raise ValueError(f"max_resolution = {self.max_resolution} has no effect on octaves: leave it out")
        if self.spacing == "octaves" and self.num_bands > MOST_OCTAVES:
            raise ValueError(f"num_bands = {self.num_bands} octaves must be at most {MOST_OCTAVES}")

    def bands(self, resolution: int, like: Tensor) -> Float[Tensor, " bands"]:
        """Return the frequencies along an axis, in the precision of `like`."""
        if self.spacing == "octaves":
            return 2 ** torch.arange(self.num_bands, dtype=like.dtype, device=like.device)
        return torch.linspace(1.0, resolution / 2, self.num_bands, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Learned:
    """A trained vector for each position of a grid; interpolated linearly in between and on other grids."""

    channels: int = 64
    """Width of the vectors."""
    project: int | None = None
    """Width of a linear map of the vectors; None: no map."""
    num_residual_layers: int = 0
    """Residual linear layers after the map, ReLU between them (official `n_extra_pos_mlp`)."""
    kind: Literal["learned"] = "learned"
    """Name in schema files."""

    def __post_init__(self) -> None:
        check_ranges(self, {"channels": SIZE, "project": SIZE, "num_residual_layers": COUNT})


PositionConfig = Fourier | Learned

MOST_BANDS, MOST_RESIDUAL_LAYERS = 100_000, 1000
"""Upper bounds of `num_bands` and `num_residual_layers`."""


def to_unit(position: Tensor, span: int, rule: CoordinateRule = "inclusive") -> Tensor:
    """Return coordinates from -1 to 1 for positions 0 to span - 1 of an axis; positions may be fractions.

    "inclusive": both ends are reached. "exclusive": 1 is not reached (official rule for subsampled points).
    """
    return -1 + 2 * position / (max(span - 1, 1) if rule == "inclusive" else span)


def bounds_to_unit(
    coordinates: Float[Tensor, "*b axes"], bounds: Sequence[tuple[float, float]] | None
) -> Float[Tensor, "*b axes"]:
    """Scale coordinates to -1 to 1 between the bounds of each axis; without rounding if these are -1 and 1 (None)."""
    if {*(bounds or ())} <= {(-1.0, 1.0)}:
        return coordinates
    low, high = coordinates.new_tensor(bounds).unbind(dim=-1)
    span = torch.where(high > low, high - low, torch.ones_like(low))  # coordinates may all be equal
    return -1 + 2 * (coordinates - low) / span


def sound_coordinates(
    coordinates: Float[Tensor, "*b m axes"], mask: Bool[Tensor, "b m"] | None, axes: int
) -> Float[Tensor, "... m axes"]:
    """Return coordinates in at least float32, checked by `sound_vectors`."""
    if coordinates.shape[-1] != axes:
        raise ValueError(f"coordinates of shape {tuple(coordinates.shape)}, expected {axes} of them at the end")
    return sound_vectors(precise(coordinates), mask, "coordinates of point")


def sound_vectors(x: Float[Tensor, "*b m c"], mask: Bool[Tensor, "b m"] | None, what: str) -> Float[Tensor, "... m c"]:
    """Return vectors of finite numbers, 0 where the mask is False; ValueError for the first that is not finite.

    Where values cannot be checked (compiled programs), numbers that are not finite become NaN: every attention
    algorithm gives NaN for these queries.
    """
    if mask is not None:
        x = torch.where(mask[..., None], x, torch.zeros_like(x))
    known = x.isfinite()
    require(known.all(), lambda: f"{what} {_first_false(known.all(-1))} are not finite numbers")
    return torch.where(known, x, torch.nan)


def _first_false(holds: Bool[Tensor, "*b"]) -> str:
    index = (~holds).nonzero()[0].tolist()
    return f"{index[-1]}" + (f" of sample {index[0]}" if len(index) > 1 else "")


@dataclass(frozen=True)
class GridPositions:
    """The positions of a grid, with their coordinates along each axis."""

    size: tuple[int, ...]
    """Number of positions along each axis."""
    span: tuple[int, ...] | None = None
    """Number of positions that reach from -1 to 1; None: `size`."""
    start: tuple[int, ...] | None = None
    """Number of the first position along each axis; None: 0."""
    rule: CoordinateRule = "inclusive"
    """Rule by which coordinates reach both ends or one (`to_unit`)."""
    device: torch.device | None = None
    """Device of the coordinates."""

    def axes(self) -> list[Float[Tensor, " n"]]:
        """Return the coordinates of the positions along each axis."""
        # float64 where the device has it: phases reach 5e4 radians for audio. The table of an axis is small.
        dtype = torch.float32 if self.device is not None and self.device.type == "mps" else torch.float64
        spans, starts = self.span or self.size, self.start or (0,) * len(self.size)
        numbers = [
            torch.arange(start, start + n, device=self.device, dtype=dtype)
            for start, n in zip(starts, self.size, strict=True)
        ]
        return [to_unit(number, span, self.rule) for number, span in zip(numbers, spans, strict=True)]

    def coordinates(self) -> Float[Tensor, "m axes"]:
        """Return the coordinates of every position, row-major."""
        return torch.stack(torch.meshgrid(*self.axes(), indexing="ij"), dim=-1).flatten(0, -2)


def fourier_features(
    coordinates: Float[Tensor, "*b axes"], max_resolution: Sequence[int], config: Fourier
) -> Float[Tensor, "*b p"]:
    """Return [coordinates, sines by axis then band, cosines likewise] (official `generate_fourier_features`)."""
    bands = [config.bands(resolution, coordinates) for resolution in max_resolution]
    phases = math.pi * torch.cat([coordinates[..., [axis]] * band for axis, band in enumerate(bands)], dim=-1)
    parts = [coordinates] if config.with_coordinates else []
    parts += [phases.sin()] if config.sine_only else [phases.sin(), phases.cos()]
    return torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class FourierAxis:
    """Fourier features of the positions of an axis, computed on demand."""

    coordinates: Float[Tensor, " n"]
    """Coordinates of the positions, in the precision of the features."""
    resolution: int
    """Samples that the highest frequency resolves."""
    config: Fourier
    """Configuration of the features."""

    @property
    def device(self) -> torch.device:
        """Device of the features."""
        return self.coordinates.device

    def __len__(self) -> int:
        return len(self.coordinates)

    def part(self, first: int, last: int) -> "FourierAxis":
        """Return the features of the positions from `first` to `last` - 1."""
        return replace(self, coordinates=self.coordinates[first:last])

    def at(self, index: Int[Tensor, "*b"]) -> Float[Tensor, "*b p"]:
        """Return the features of positions by number; if more are requested than exist, the axis is computed once."""
        if torch.compiler.is_compiling() or index.numel() > len(self):
            return torch.cat([*self.parts(self.coordinates.dtype)])[index]
        return fourier_features(self.coordinates[index][..., None], [self.resolution], self.config)

    def parts(self, dtype: torch.dtype) -> Iterator[Float[Tensor, "k p"]]:
        """Yield the features of all positions, chunk by chunk: computing features takes several times their memory."""
        for part in [self.coordinates] if torch.compiler.is_compiling() else self.coordinates.split(POSITIONS_AT_ONCE):
            yield fourier_features(part[:, None], [self.resolution], self.config).to(dtype)


class PositionEncoding(nn.Module, ABC):
    """Base class of position features. `on_grid` and `at` call the module, so that its hooks run."""

    def on_grid(self, grid_positions: GridPositions) -> Any:
        """Return the features of a whole grid."""
        return self(grid_positions)

    def at(self, coordinates: Float[Tensor, "*b axes"]) -> Float[Tensor, "*b p"]:
        """Return the features at any coordinates."""
        features: Tensor = self(coordinates)
        return features

    def forward(self, grid_positions: GridPositions | Tensor) -> PositionFeatures:
        """Return the features of a grid, or at coordinates [..., axes]."""
        return self._on_grid(grid_positions) if isinstance(grid_positions, GridPositions) else self._at(grid_positions)

    @abstractmethod
    def _on_grid(self, grid_positions: GridPositions) -> PositionFeatures: ...

    @abstractmethod
    def _at(self, coordinates: Float[Tensor, "*b axes"]) -> Float[Tensor, "*b p"]: ...


class FourierPositions(PositionEncoding):
    """Fourier features of `axes` coordinates, without parameters."""

    def __init__(self, axes: int, grid: Sequence[int] | None, config: Fourier) -> None:
        super().__init__()
        resolution = grid if config.max_resolution is None else config.max_resolution
        resolution = 1 if config.spacing == "octaves" else resolution  # without effect
        if resolution is None:
            raise ValueError("Fourier positions without a grid need max_resolution, e.g. Fourier(max_resolution=64)")
        self.max_resolution = (resolution,) * axes if isinstance(resolution, int) else tuple(resolution)
        if len(self.max_resolution) != axes:
            raise ValueError(f"max_resolution {self.max_resolution} must have one number for each of {axes} axes")
        if config.num_bands > MOST_BANDS:
            raise ValueError(f"num_bands = {config.num_bands} must be at most {MOST_BANDS}")
        self.config, self.axes = config, axes
        self.channels = axes * ((1 if config.sine_only else 2) * config.num_bands + config.with_coordinates)

    def _on_grid(self, grid_positions: GridPositions) -> AxisTables:
        """Return the features of a grid, as a table for each axis."""
        tables = [
            FourierAxis(axis, resolution, self.config)
            for axis, resolution in zip(grid_positions.axes(), self.max_resolution, strict=True)
        ]
        return AxisTables(tuple(tables), tuple(self._channels_of(axis) for axis in range(self.axes)))

    def _at(self, coordinates: Float[Tensor, "*b axes"]) -> Float[Tensor, "*b p"]:
        """Return the features at any coordinates, computed in at least float32."""
        return fourier_features(precise(coordinates), self.max_resolution, self.config)

    def _channels_of(self, axis: int) -> tuple[int, ...]:
        """Return the channels that depend on one axis: its coordinate, sines and cosines."""
        bands, first = self.config.num_bands, self.axes * self.config.with_coordinates
        blocks = range(1 if self.config.sine_only else 2)
        starts = [first + (block * self.axes + axis) * bands for block in blocks]
        waves = itertools.chain.from_iterable(range(start, start + bands) for start in starts)
        return (*((axis,) if self.config.with_coordinates else ()), *waves)


class LearnedPositions(PositionEncoding):
    """A trained vector for each position of a grid (official `TrainablePositionEncoding`)."""

    def __init__(self, grid: Sequence[int], channels: int) -> None:
        super().__init__()
        self.grid, self.channels = tuple(grid), channels
        self.table = trained_vector(math.prod(grid), channels)

    def _on_grid(self, grid: GridPositions) -> Tensor:
        """Return vectors [M, P] of a grid: the trained ones on the trained grid, interpolated ones on another."""
        # The trained grid, or a part of it: the vectors themselves.
        if grid.size == self.grid and grid.span in (None, self.grid) and not any(grid.start or ()):
            return self.table
        starts = grid.start or (0,) * len(self.grid)
        ends = [start + n for start, n in zip(starts, grid.size, strict=True)]
        if grid.span == self.grid and all(end <= n for end, n in zip(ends, self.grid, strict=True)):
            return self.table.unflatten(0, self.grid)[tuple(map(slice, starts, ends))].flatten(0, -2)
        return self._at(replace(grid, rule="inclusive").coordinates())

    def _at(self, coordinates: Float[Tensor, "*b axes"]) -> Float[Tensor, "*b p"]:
        """Interpolate linearly between the 2^d trained vectors around each point; constant outside the grid."""
        coordinates = precise(coordinates)
        sizes = torch.tensor(self.grid, device=coordinates.device)
        # Points in units of the grid's steps, from 0; the corner below and the fraction of a step beyond it.
        points = ((coordinates + 1) / 2 * (sizes - 1)).clamp(min=torch.zeros_like(sizes), max=sizes - 1)
        low = points.nan_to_num(0.0).floor().long()  # NaN has no corner; its fraction, and so its vector, is NaN
        fraction = (points - low).to(self.table.dtype)
        # Sum over the 2^d corners of weight x vector.
        result = torch.zeros(*coordinates.shape[:-1], self.channels, dtype=self.table.dtype, device=self.table.device)
        for corner in itertools.product((0, 1), repeat=len(self.grid)):
            step = torch.tensor(corner, device=coordinates.device)
            weight = torch.where(step == 1, fraction, 1 - fraction).prod(dim=-1, keepdim=True)
            neighbour = torch.minimum(low + step, sizes - 1)
            result = result + weight * self.table[_ravel(neighbour, self.grid)]
        return result


class Positions(PositionEncoding):
    """Position features as configured: Fourier or learned, then optionally a linear map and residual layers."""

    def __init__(self, axes: int, grid: Sequence[int] | None, config: PositionConfig) -> None:
        super().__init__()
        self.source: FourierPositions | LearnedPositions
        if isinstance(config, Fourier):
            self.source = FourierPositions(axes, grid, config)
        elif grid is None:
            raise ValueError("learned positions need a grid; values at free coordinates take Fourier positions")
        else:
            self.source = LearnedPositions(grid, config.channels)
        if config.num_residual_layers > MOST_RESIDUAL_LAYERS:
            raise ValueError(
                f"num_residual_layers = {config.num_residual_layers} must be at most {MOST_RESIDUAL_LAYERS}"
            )
        self.channels = config.project or self.source.channels
        self.projection = plain_linear(self.source.channels, config.project) if config.project else None
        self.residual_layers = nn.ModuleList(
            plain_linear(self.channels, self.channels) for _ in range(config.num_residual_layers)
        )

    def _on_grid(self, grid_positions: GridPositions) -> PositionFeatures:
        """Return the features of a whole grid, as a table for each axis if each feature depends on one axis only."""
        return self._refine(self.source.on_grid(grid_positions))

    def _at(self, coordinates: Float[Tensor, "*b axes"]) -> Float[Tensor, "*b p"]:
        """Return the features at any coordinates."""
        features = self._refine(self.source.at(coordinates))
        assert isinstance(features, Tensor)
        return features

    def _refine(self, features: PositionFeatures) -> PositionFeatures:
        """Apply the linear map and the residual layers."""
        if self.projection is None and not self.residual_layers:
            return features
        dtype = next(self.parameters()).dtype
        x = features.dense(dtype) if isinstance(features, AxisTables) else features.to(dtype)
        x = x if self.projection is None else self.projection(x)
        for number, layer in enumerate(self.residual_layers):
            x = x.relu() if number else x
            x = x + layer(x)
        return x


def _ravel(index: Int[Tensor, "*b axes"], grid: Sequence[int]) -> Int[Tensor, "*b"]:
    """Return the row-major number of each position of a grid from its index along each axis."""
    number = torch.zeros_like(index[..., 0])
    for axis, size in enumerate(grid):
        number = number * size + index[..., axis]
    return number
