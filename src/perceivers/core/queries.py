"""The ways to ask: trained queries, positions, the tokens of an input, the caller's own."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from perceivers.core.arguments import as_mask, as_tensor, check_index, floats
from perceivers.core.initialisers import trained_vector
from perceivers.core.interfaces import Coordinates, Indices, OutputQuery, Points, Queries
from perceivers.core.positions import (
    CoordinateRule,
    GridPlaces,
    PositionConfig,
    Positions,
    sound_coordinates,
    sound_vectors,
    to_unit,
)
from perceivers.core.reading import Encoded
from perceivers.core.tokens import Segment


class LearnedQuery(OutputQuery):
    """A trained vector for each of a fixed number of queries (official `ClassificationDecoder`)."""

    def __init__(self, num_queries: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.table = trained_vector(num_queries, channels)

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """All of them, or those at Indices."""
        return at_points(Segment(content=self.table[None]), points)


class PositionQuery(OutputQuery):
    """Positions of a grid: all of it, some of its places, or any place in between."""

    def __init__(self, grid: Sequence[int], config: PositionConfig, rule: CoordinateRule = "inclusive") -> None:
        super().__init__()
        self.grid, self.rule = tuple(grid), rule
        self.positions = Positions(len(self.grid), self.grid, config)
        self.channels = self.positions.channels

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Coordinates count places of the grid along each axis, from 0, fractions allowed."""
        if isinstance(points, Coordinates):
            coordinates = sound_coordinates(points.coordinates, points.mask, len(self.grid))
            unit = [to_unit(x, n, self.rule) for x, n in zip(coordinates.unbind(-1), self.grid, strict=True)]
            return Segment(positions=self.positions.at(torch.stack(unit, dim=-1)), mask=points.mask)
        positions = self.positions.on_grid(GridPlaces(self.grid, rule=self.rule, device=encoded.latents.device))
        return at_points(Segment(positions=positions, grid=self.grid), points)


class CoordinateQuery(OutputQuery):
    """Positions of free coordinates; it must be told which."""

    def __init__(self, axes: int, config: PositionConfig, to_unit: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.axes = axes
        self.positions = Positions(axes, None, config)
        self.channels = self.positions.channels
        self.to_unit = to_unit

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """`to_unit` brings the data's coordinates to -1 to 1."""
        if not isinstance(points, Coordinates):
            raise ValueError("values at free coordinates have no whole: ask with points={name: Coordinates(...)}")
        coordinates = sound_coordinates(points.coordinates, points.mask, self.axes)
        return Segment(positions=self.positions.at(self.to_unit(coordinates)), mask=points.mask)


class InputQuery(OutputQuery):
    """The tokens of an input, features and positions (official `FlowDecoder`), or one of them alone."""

    def __init__(self, source: str, channels: int, place: int | None = None) -> None:
        super().__init__()
        self.source, self.channels, self.place = source, channels, place

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """One query for each token of the input, or those at Indices."""
        if self.source is None or self.source not in encoded.sources:
            raise ValueError(f"this output asks with input {self.source!r}, which was not given")
        tokens = encoded.sources[self.source]
        if self.place is None:
            return at_points(tokens, points)
        if not 0 <= self.place < tokens.num_tokens:
            raise ValueError(f"token {self.place} is outside the {tokens.num_tokens} of input {self.source!r}, from 0")
        return at_points(tokens.block(self.place, self.place + 1), points)


class GivenQuery(OutputQuery):
    """Queries that the caller brings."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Only Queries."""
        if not isinstance(points, Queries):
            raise ValueError("this output has no queries of its own: ask with points={name: Queries(...)}")
        if points.queries.shape[-1] != self.channels:
            raise ValueError(f"queries have {points.queries.shape[-1]} channels, expected {self.channels}")
        queries = sound_vectors(_batched(points.queries), points.mask, "numbers of query")
        return Segment(content=queries, mask=points.mask)


class NoQuery(OutputQuery):
    """One row that asks nothing, of no width, for decoders that need no queries."""

    channels = 0

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Nothing to choose."""
        return at_points(Segment(content=encoded.latents.new_empty(1, 1, 0)), points)


def no_query(name: str, query: OutputQuery) -> OutputQuery:
    """In place of the query of an output of one row; ValueError for any other output."""
    if not isinstance(query, LearnedQuery) or len(query.table) != 1:
        raise ValueError(f"decoder.kind: average writes one row; output {name!r} has more, so it needs kind: query")
    return NoQuery()


def at_points(segment: Segment, points: Points | None) -> Segment:
    """All of a segment's queries, or those at Indices; ValueError for other points."""
    if points is None:
        return segment
    if not isinstance(points, Indices):
        raise ValueError(f"this output can be asked at Indices only, not at {type(points).__name__}")
    check_index(points.index, segment.num_tokens, "index", "places of this output")
    if segment.num_tokens == 1 and not points.index.shape[-1]:
        raise ValueError("asked at no place, but this output has one row: leave it out of outputs=")
    rows = segment.rows(points.index)
    if points.mask is None:
        return rows
    return replace(rows, mask=points.mask if rows.mask is None else rows.mask & points.mask)


def given_points(points: Any, device: torch.device) -> Points:
    """Return the points that a caller asks at, as tensors of the type and the rank that they must have."""
    if not isinstance(points, Points):
        raise ValueError(f"asked at {type(points).__name__}: give Indices, Coordinates or Queries")
    name = {Indices: "index", Coordinates: "coordinates", Queries: "queries"}[type(points)]
    x, rank = as_tensor(getattr(points, name), device), 1 if isinstance(points, Indices) else 2
    if x.ndim not in (rank, rank + 1) or (x.ndim > rank and not x.shape[0]):
        raise ValueError(f"{name} of shape {tuple(x.shape)}, expected {rank} axes, or {rank + 1} with the batch first")
    if not isinstance(points, Indices):
        x = floats(x)
    elif x.numel() and (x.is_floating_point() or x.dtype == torch.bool):
        raise ValueError(f"index of type {x.dtype}, expected whole numbers, each a place")
    else:
        x = x.long()
    mask = None if points.mask is None else as_mask(as_tensor(points.mask, device))
    if mask is not None:
        mask, count = mask if mask.ndim > 1 else mask[None], x.shape[x.ndim - rank]
        batches = {len(mask), len(x) if x.ndim > rank else 1} - {1}
        if mask.ndim != 2 or mask.shape[1] != count or len(batches) > 1:
            raise ValueError(f"mask of shape {tuple(mask.shape)}, but {name} of shape {tuple(x.shape)}")
    own: Points = type(points)(x, mask)
    return own


def _batched(x: Float[Tensor, "*b o f"]) -> Float[Tensor, "b o f"]:
    return x if x.ndim == 3 else x[None]
