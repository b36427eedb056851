"""The queries of an output: trained vectors, positions, the tokens of an input, or the caller's vectors."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from perceivers.core.interfaces import OutputQuery
from perceivers.core.layers import trained_vector
from perceivers.core.reading import Encoded
from perceivers.core.tokens import Segment
from perceivers.modalities.points import Coordinates, Points, Queries, at_points
from perceivers.modalities.position_encodings import (
    CoordinateRule,
    GridPositions,
    PositionConfig,
    Positions,
    sound_coordinates,
    sound_vectors,
    to_unit,
)


class LearnedQuery(OutputQuery):
    """A trained vector for each of a fixed number of queries (official `ClassificationDecoder`)."""

    def __init__(self, num_queries: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.table = trained_vector(num_queries, channels)

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Return all queries, or those at Indices."""
        return at_points(Segment(content=self.table[None]), points)

    def without_channels(self) -> OutputQuery:
        """Return a query without content, for a decoder that averages; ValueError if there are several queries."""
        return NoQuery() if len(self.table) == 1 else super().without_channels()


class PositionQuery(OutputQuery):
    """Queries made of the positions of a grid: at all of them, at some, or at any coordinates in between."""

    def __init__(self, grid: Sequence[int], config: PositionConfig, rule: CoordinateRule = "inclusive") -> None:
        super().__init__()
        self.grid, self.rule = tuple(grid), rule
        self.positions = Positions(len(self.grid), self.grid, config)
        self.channels = self.positions.channels

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Return the queries at points; coordinates count the grid's positions along each axis, from 0."""
        if isinstance(points, Coordinates):
            coordinates = sound_coordinates(points.coordinates, points.mask, len(self.grid))
            unit = [to_unit(x, n, self.rule) for x, n in zip(coordinates.unbind(-1), self.grid, strict=True)]
            return Segment(positions=self.positions.at(torch.stack(unit, dim=-1)), mask=points.mask)
        positions = self.positions.on_grid(GridPositions(self.grid, rule=self.rule, device=encoded.latents.device))
        return at_points(Segment(positions=positions, grid=self.grid), points)


class CoordinateQuery(OutputQuery):
    """Queries made of position features at free coordinates, which the caller must give."""

    def __init__(self, axes: int, config: PositionConfig, to_unit: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.axes = axes
        self.positions = Positions(axes, None, config)
        self.channels = self.positions.channels
        self.to_unit = to_unit

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Return a query for each point, whose coordinates `to_unit` scales to -1 to 1."""
        if not isinstance(points, Coordinates):
            raise ValueError("values at free coordinates have no whole: give points={name: Coordinates(...)}")
        coordinates = sound_coordinates(points.coordinates, points.mask, self.axes)
        return Segment(positions=self.positions.at(self.to_unit(coordinates)), mask=points.mask)


class InputQuery(OutputQuery):
    """Queries made of all tokens of an input, content and positions (official `FlowDecoder`), or of a single token."""

    def __init__(self, source: str, channels: int, token: int | None = None) -> None:
        super().__init__()
        self.source, self.channels, self.token = source, channels, token

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Return a query for each token of the input (or for the single token), or those at Indices."""
        if self.source is None or self.source not in encoded.sources:
            raise ValueError(f"the queries of this output are the tokens of input {self.source!r}, which was not given")
        tokens = encoded.sources[self.source]
        if self.token is None:
            return at_points(tokens, points)
        if not 0 <= self.token < tokens.num_tokens:
            raise ValueError(f"token {self.token} is outside the {tokens.num_tokens} of input {self.source!r}, from 0")
        return at_points(tokens.block(self.token, self.token + 1), points)


class GivenQuery(OutputQuery):
    """Queries that the caller provides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Return the vectors of `Queries`; ValueError for other points."""
        if not isinstance(points, Queries):
            raise ValueError("the caller provides the queries of this output: give points={name: Queries(...)}")
        if points.queries.shape[-1] != self.channels:
            raise ValueError(f"queries have {points.queries.shape[-1]} channels, expected {self.channels}")
        queries = sound_vectors(_batched(points.queries), points.mask, "numbers of query")
        return Segment(content=queries, mask=points.mask)


class NoQuery(OutputQuery):
    """One query of width 0, for decoders that need no queries."""

    channels = 0

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Return the query; points can only select or mask this query."""
        return at_points(Segment(content=encoded.latents.new_empty(1, 1, 0)), points)


def _batched(x: Float[Tensor, "*b o f"]) -> Float[Tensor, "b o f"]:
    return x if x.ndim == 3 else x[None]
