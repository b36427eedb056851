"""The queries of an output: trained vectors, positions, the tokens of an input, or the caller's vectors."""

import math
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

    def of_latents(self, num_latents: int, channels: int, mean: bool) -> OutputQuery:
        """Return queries that are the latents, or their mean; ValueError if there are not as many."""
        return LatentQuery(len(self.table), None, num_latents, channels, mean)


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

    def of_latents(self, num_latents: int, channels: int, mean: bool) -> OutputQuery:
        """Return queries that are the latents, or their mean; ValueError if there are not as many."""
        return LatentQuery(math.prod(self.grid), self.grid, num_latents, channels, mean)


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


class LatentQuery(OutputQuery):
    """Queries that are the latents, or their mean, for a decoder without attention."""

    def __init__(
        self, num_queries: int, grid: tuple[int, ...] | None, num_latents: int, channels: int, mean: bool
    ) -> None:
        super().__init__()
        if num_queries != (1 if mean else num_latents):
            given = "one query, the mean of the latents" if mean else f"a query for each of {num_latents} latents"
            raise ValueError(f"decoder.kind gives {given}, but this output has {num_queries}: it needs kind: query")
        self.grid, self.channels, self.mean = grid, channels, mean

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Return the latents as queries, or those at Indices."""
        latents, mask = encoded.latents, encoded.mask
        if not self.mean:
            around = None if encoded.around is None else encoded.around.coordinates
            return at_points(Segment(latents, mask=mask, coordinates=around, grid=self.grid), points)
        found = latents.mean(dim=1, keepdim=True)
        if mask is not None:
            count = mask.sum(1, keepdim=True).clamp(min=1)[..., None]
            found = torch.where(mask[..., None], latents, 0).sum(1, keepdim=True) / count
        return at_points(Segment(found), points)


def _batched(x: Float[Tensor, "*b o f"]) -> Float[Tensor, "b o f"]:
    return x if x.ndim == 3 else x[None]
