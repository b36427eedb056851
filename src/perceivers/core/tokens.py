"""Tokens of the encoder and queries of the decoder, stored as parts and assembled when needed.

    token = [content | positions | padding]  or  [content + positions | padding],  then a projection, then mask tokens

Letters: B batch, M tokens, C width of a token.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perceivers.core.coordinates import Coordinates, Located, dense_coordinates
from perceivers.core.layers import in_own_range, linear

Take = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Segment:
    """The M tokens of one input, or queries of one output, as parts; at least content or positions are given.

    A batch of 1 (or positions without a batch) stands for "the same for every sample".
    """

    content: Float[Tensor, "#b m c"] | None = None
    """The data."""
    positions: Any = None
    """Position features: [M, P], [B, M, P], or `positions.AxisTables`, expanded when needed."""
    positions_added: bool = False
    """True if positions are added to the content instead of concatenated with it."""
    padding: Float[Tensor, " k"] | None = None
    """Trained channels appended to each token, which bring it to the common width."""
    projection: tuple[Float[Tensor, "width raw"], Float[Tensor, " width"]] | None = None
    """Weight and bias of a linear map of the parts above to the common width, applied when tokens are assembled."""
    mask: Bool[Tensor, "#b m"] | None = None
    """True where the token is valid; None: all are."""
    coordinates: Coordinates = None
    """Coordinates of the tokens along named axes, for rotary positions; None: there are none."""
    grid: tuple[int, ...] | None = None
    """Shape of the grid that the M tokens form, row-major; None: no grid."""
    mask_token: Float[Tensor, " width"] | None = None
    """Vector of the common width that replaces a masked token."""
    masked: Bool[Tensor, "#b m"] | None = None
    """True where the mask token replaces the token."""
    log_weight: Float[Tensor, "1"] | None = None
    """Logarithm of the number of times that each token counts when it is read; None: once."""
    extent: Any = None
    """Part of the input that this segment is, with a method `check_apart(name, other)`; None: the whole input."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens, M."""
        if self.content is not None:
            return self.content.shape[1]
        return self.positions.shape[-2] if isinstance(self.positions, Tensor) else self.positions.num_positions

    @property
    def raw_channels(self) -> int:
        """Width before the projection."""
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
        along = self.coordinates.values() if isinstance(self.coordinates, Mapping) else ()
        parts = (self.content, positions, self.mask, self.masked, *along)
        return max([1, *(part.shape[0] for part in parts if part is not None)])

    @property
    def device(self) -> torch.device:
        """Device of the tokens."""
        return (self.positions if self.content is None else self.content).device

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
        x = concatenated(parts, dim=-1)
        if self.projection is not None:
            weight, bias = self.projection
            with in_own_range(x.device):
                x = linear(x, weight.to(dtype), bias.to(dtype))
        if self.masked is None:
            return x
        assert self.mask_token is not None
        return torch.where(self.masked[..., None], self.mask_token.to(dtype), x)

    def at(self, index: Int[Tensor, "*b o"]) -> "Segment":
        """Return the tokens at row-major indices, [O] for the whole batch or [B, O] for each sample."""
        index = index if index.ndim == 2 else index[None]

        def take(x: Tensor) -> Tensor:
            batch = max(x.shape[0], index.shape[0])
            expanded = index.reshape(*index.shape, *[1] * (x.ndim - 2)).expand(batch, -1, *x.shape[2:])
            return x.expand(batch, *x.shape[1:]).gather(1, expanded)

        return self.taken(take, lambda tables: tables.at(index), None)

    def block(self, start: int, stop: int) -> "Segment":
        """Return the tokens from `start` to before `stop`, row-major, without a copy."""
        index = partial(torch.arange, start, stop, device=self.device)  # called for axis tables only
        return self.taken(lambda x: x[:, start:stop], lambda tables: tables.at(index()), None)

    def taken(self, take: Take, take_tables: Callable[[Any], Any], grid: tuple[int, ...] | None) -> "Segment":
        """Return some of the tokens: `take` selects from arrays with an entry per token, `take_tables` from tables."""
        content, mask, masked = (None if x is None else take(x) for x in (self.content, self.mask, self.masked))
        positions = self.positions
        if isinstance(positions, Tensor):
            positions = take(positions) if positions.ndim == 3 else take(positions[None])
        elif positions is not None:
            positions = take_tables(positions)
        taken = {"content": content, "positions": positions, "mask": mask, "masked": masked, "grid": grid}
        coordinates = self.coordinates
        if isinstance(coordinates, Mapping):
            coordinates = {axis: take(x) for axis, x in coordinates.items()}
        elif coordinates is not None:
            coordinates = take_tables(coordinates)
        return replace(self, **taken, coordinates=coordinates)

    def located(self, axes: Sequence[str]) -> Located:
        """Return the coordinates along the axes of a rotary embedding."""
        along, lacking = dense_coordinates(self.coordinates), torch.zeros(1, self.num_tokens, device=self.device)
        found = torch.broadcast_tensors(*(along.get(axis, lacking) for axis in axes))
        return Located(torch.stack(found, -1), ((self.num_tokens, tuple(axis in along for axis in axes)),))

    def _positions(self, dtype: torch.dtype) -> Tensor | None:
        if self.positions is None:
            return None
        dense = self.positions.to(dtype) if isinstance(self.positions, Tensor) else self.positions.dense(dtype)
        return dense if dense.ndim == 3 else dense[None]


@dataclass(frozen=True)
class Tokens:
    """Segments of one width by name, concatenated along the token axis."""

    segments: Mapping[str, Segment] = field(default_factory=dict)

    def dense(self, dtype: torch.dtype) -> Float[Tensor, "b m c"]:
        """Return all tokens as an array."""
        if not self.segments:
            raise ValueError("no tokens: at least one input or output is needed")
        return concatenated([segment.dense(dtype) for segment in self.segments.values()], dim=1)

    def mask(self) -> Bool[Tensor, "b m"] | None:
        """Return True where a token is valid; None: all are."""
        masks = {name: segment.mask for name, segment in self.segments.items() if segment.mask is not None}
        if not masks:
            return None
        like = next(iter(masks.values()))
        every = [masks.get(name, like.new_ones(1, x.num_tokens)) for name, x in self.segments.items()]
        return concatenated(every, dim=1)

    def coordinates(self) -> Coordinates:
        """Return the coordinates of all tokens; None if some lack an axis that others have."""
        found = [dense_coordinates(segment.coordinates) for segment in self.segments.values()]
        if not found[0] or any(part.keys() != found[0].keys() for part in found):
            return None
        return {axis: concatenated([part[axis] for part in found], dim=1) for axis in found[0]}

    def located(self, axes: Sequence[str]) -> Located:
        """Return the coordinates of all tokens along the axes of a rotary embedding."""
        parts = [segment.located(axes) for segment in self.segments.values()]
        runs = tuple(run for part in parts for run in part.runs)
        return Located(concatenated([part.coordinates for part in parts], dim=1), runs)

    def split(self, x: Tensor, dim: int = 1) -> dict[str, Tensor]:
        """Split an array along its token axis `dim` into the segments, by name."""
        sizes = [segment.num_tokens for segment in self.segments.values()]
        return dict(zip(self.segments, x.split(sizes, dim), strict=True))


def token_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of tokens before the layer norm, in a model of precision `dtype`.

    float16 ends at 65,504, which raw values may exceed; after the norm their scale does not matter.
    """
    return torch.float32 if dtype == torch.float16 else dtype


def concatenated(parts: list[Tensor], dim: int) -> Tensor:
    """Return the parts concatenated along an axis; a batch of 1 is expanded to that of the others."""
    batch = max(part.shape[0] for part in parts)
    return torch.cat([part.expand(batch, *part.shape[1:]) for part in parts], dim) if len(parts) > 1 else parts[0]
