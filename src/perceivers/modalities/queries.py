"""The queries of an output: trained vectors, positions, the tokens of an input, or the caller's vectors."""

import math
from collections.abc import Callable, Sequence
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.core.interfaces import OutputQuery
from perceivers.core.layers import trained_vector
from perceivers.core.reading import Encoded
from perceivers.core.tokens import Segment, token_dtype
from perceivers.modalities.places import NamedAxes
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

    def __init__(self, num_queries: int, channels: int, axes: NamedAxes | None = None) -> None:
        super().__init__()
        self.channels, self.axes = channels, axes or NamedAxes()
        self.table = trained_vector(num_queries, channels)

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Return all queries, or those at Indices; with a named axis, the coordinate of a query is its number."""
        size, device = (len(self.table),), self.table.device
        coordinates = self.axes.on_grid(size, None, device) if self.axes.names else None
        return at_points(Segment(content=self.table[None], coordinates=coordinates), points)

    def of_latents(self, num_latents: int, channels: int, mean: bool) -> OutputQuery:
        """Return queries that are the latents, or their mean; ValueError if there are not as many."""
        return LatentQuery(len(self.table), None, num_latents, channels, mean)


class SharedContent(nn.Module):
    """Content that all queries of a sample have in common: a trained vector, or the single token of an input."""

    def __init__(self, channels: int, source: str | None = None) -> None:
        super().__init__()
        self.channels, self.source = channels, source
        self.vector = trained_vector(channels) if source is None else None

    def forward(self, encoded: Encoded, count: int) -> Segment:
        """Return the content of `count` queries, with a mask if the token has one."""
        if self.vector is not None:
            return Segment(self.vector.expand(1, count, -1))
        tokens = source_tokens(encoded, self.source)
        if tokens.num_tokens != 1:
            raise ValueError(
                f"input {self.source!r} has {tokens.num_tokens} tokens, but the content of queries is a single one"
            )
        mask = None if tokens.mask is None else tokens.mask.expand(-1, count)
        return Segment(tokens.dense(token_dtype(encoded.latents.dtype)).expand(-1, count, -1), mask=mask)


class PositionQuery(OutputQuery):
    """Queries made of the positions of a grid: at all of them, at some, or at any coordinates in between."""

    def __init__(
        self,
        grid: Sequence[int],
        config: PositionConfig | None,
        rule: CoordinateRule = "inclusive",
        axes: NamedAxes | None = None,
        content: SharedContent | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.rule, self.axes, self.content = tuple(grid), rule, axes or NamedAxes(), content
        self.positions = None if config is None else Positions(len(self.grid), self.grid, config)
        self.channels = sum(part.channels for part in (self.positions, content) if part is not None)

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Return the queries at points; coordinates count the grid's positions along each axis, from 0."""
        if isinstance(points, Coordinates):
            return self._at(encoded, points)
        size, device, positions = self.grid, encoded.latents.device, None
        if self.positions is not None:
            positions = self.positions.on_grid(GridPositions(size, rule=self.rule, device=device))
        content = None if self.content is None else self.content(encoded, math.prod(size)).content
        coordinates = self.axes.on_grid(size, None, device)
        return at_points(Segment(content, positions, coordinates=coordinates, grid=size), points)

    def _at(self, encoded: Encoded, points: Coordinates) -> Segment:
        numbers, positions = sound_coordinates(points.coordinates, points.mask, len(self.grid)), None
        if self.positions is not None:
            unit = [to_unit(x, n, self.rule) for x, n in zip(numbers.unbind(-1), self.grid, strict=True)]
            positions = self.positions.at(torch.stack(unit, dim=-1))
        content = None if self.content is None else self.content(encoded, numbers.shape[-2]).content
        return Segment(content, positions, mask=points.mask, coordinates=self.axes.at(numbers, points.mask))

    def of_latents(self, num_latents: int, channels: int, mean: bool) -> OutputQuery:
        """Return queries that are the latents, or their mean; ValueError if there are not as many."""
        return LatentQuery(math.prod(self.grid), self.grid, num_latents, channels, mean)


class CoordinateQuery(OutputQuery):
    """Queries at free coordinates, which the caller must give: position features, content, or both."""

    def __init__(
        self,
        num_axes: int,
        config: PositionConfig | None,
        to_unit: Callable[[Tensor], Tensor],
        axes: NamedAxes | None = None,
        content: SharedContent | None = None,
    ) -> None:
        super().__init__()
        self.num_axes, self.axes, self.content, self.to_unit = num_axes, axes or NamedAxes(), content, to_unit
        self.source = None if content is None else content.source
        self.positions = None if config is None else Positions(num_axes, None, config)
        self.channels = sum(part.channels for part in (self.positions, content) if part is not None)

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Return a query for each point, whose coordinates `to_unit` scales to -1 to 1."""
        if not isinstance(points, Coordinates):
            raise ValueError("values at free coordinates have no whole: give points={name: Coordinates(...)}")
        coordinates = sound_coordinates(points.coordinates, points.mask, self.num_axes)
        positions = None if self.positions is None else self.positions.at(self.to_unit(coordinates))
        along, content, mask = self.axes.at(coordinates, points.mask), None, points.mask
        if self.content is not None:
            shared = self.content(encoded, coordinates.shape[-2])
            content, masks = shared.content, [x for x in (mask, shared.mask) if x is not None]
            mask = reduce(torch.logical_and, masks) if masks else None
        return Segment(content, positions, mask=mask, coordinates=along)


class InputQuery(OutputQuery):
    """Queries made of all tokens of an input, content and positions (official `FlowDecoder`), or of a single token."""

    def __init__(self, source: str, channels: int, token: int | None = None) -> None:
        super().__init__()
        self.source, self.channels, self.token = source, channels, token

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Return a query for each token of the input (or for the single token), or those at Indices."""
        tokens = source_tokens(encoded, self.source)
        if self.token is None:
            return at_points(tokens, points)
        if not 0 <= self.token < tokens.num_tokens:
            raise ValueError(f"token {self.token} is outside the {tokens.num_tokens} of input {self.source!r}, from 0")
        return at_points(tokens.block(self.token, self.token + 1), points)


def source_tokens(encoded: Encoded, source: str | None) -> Segment:
    """Return the tokens of the input that an output's queries are made of; ValueError if it was not given."""
    if source is None or source not in encoded.sources:
        raise ValueError(f"the queries of this output are the tokens of input {source!r}, which was not given")
    return encoded.sources[source]


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
