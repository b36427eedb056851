"""Values on an n-dimensional grid: the base of images, video, audio and series.

A raw batch is [B, *size, C] in the data's units (bytes of a picture stay 0 to 255), channels last. With missing values
it is {"values": [B, *size, C], "mask": [B, *size]}, True where there is a value. In a target, NaN and infinite values
are unknown.

    input    [B, *size, C] -> patches [B, *grid, K] -> tokens [B, M, K], with their positions: a `Segment`
    output   decoded queries [B, O, E] -> head -> patches [B, *grid, values of a patch] -> [B, *size, C]

Letters: B batch, C channels, M tokens (the patches of a grid), K width of a token's content, O queries.
"""

import math
from abc import ABC
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.core.checks import is_whole
from perceivers.core.interfaces import InputAdapter, OutputAdapter, OutputQuery
from perceivers.core.layers import dtype_of, plain_linear
from perceivers.core.precision import floats
from perceivers.core.reading import Encoded
from perceivers.core.tokens import Segment
from perceivers.modalities.convolution import ConvPadding, ConvStem, ConvUpsample, symmetric_size
from perceivers.modalities.modality import (
    Modality,
    Raw,
    check_units,
    denormalised,
    mean_where,
    normalised,
    same_shape,
    unit_std,
)
from perceivers.modalities.patches import as_sizes, depth_to_space, flattened_grid, space_to_depth, strided, token_grid
from perceivers.modalities.places import NamedAxes, check_axis_names
from perceivers.modalities.points import Indices, Part, Points
from perceivers.modalities.position_encodings import CoordinateRule, Fourier, GridPositions, PositionConfig, Positions
from perceivers.modalities.queries import PositionQuery, SharedContent
from perceivers.modalities.raw import as_array, as_float32, check_keys, finite, may_hold
from perceivers.modalities.table_cells import Files, array_file, holds_file, numbers

if TYPE_CHECKING:
    from torchmetrics import Metric


MOST_POSITIONS = 2**53
"""Largest size of an axis: float64 coordinates cannot tell the positions of a longer axis apart."""


@dataclass(frozen=True)
class Moments:
    """Summary of one value, to which the statistics of a grid are fitted."""

    count: int
    """Number of elements whose channels are all finite."""
    total: np.ndarray
    """Sum of these elements, [C]."""
    squares: np.ndarray
    """Sum of their squares, [C]."""
    low: float
    """Lowest value of any of their channels."""
    high: float
    """Highest value of any of their channels."""


@dataclass(frozen=True)
class Grid(Modality, ABC):
    """Values on a grid of `axes` axes. `Coordinates` to decode at are counted in queries along each axis, from 0."""

    axes: ClassVar[int]
    """Number of axes."""
    stretched: ClassVar[bool] = True
    """True: positions run from -1 to 1 on a grid of any size. False: they keep the step of the trained size."""
    preprocess_needs_fit: ClassVar[bool] = False

    size: int | tuple[int, ...] = 32
    """Size of the grid in training, along each axis; inputs may have any other size."""
    channels: int = 1
    """Number of values at each position of the grid."""
    patch: int | tuple[int, ...] = 1
    """Size of a patch, which makes one token, along each axis."""
    stem: Literal["patches", "strided", "conv"] = "patches"
    """Content of a token: all values of its patch; its first position (inputs); convolutions (outputs: upsampling)."""
    embed: int | None = None
    """Width of a linear map (or, for "conv", of the convolutions) that makes the content of a token; None: no map."""
    positions: PositionConfig | None = field(default_factory=Fourier)
    """Position features of tokens and queries; None: none (an output then needs `axis_names`)."""
    add_positions: bool = False
    """True: positions are added to the content; False: they are concatenated."""
    axis_names: tuple[str, ...] = ()
    """Name of each axis, along which tokens and queries then have coordinates for rotary positions; (): none.

    The coordinate of a token is the middle of its patch, counted in positions of the input from 0.
    """
    query_channels: int = 256
    """As an output without positions: width of the trained vector of all queries."""
    coordinate_rule: CoordinateRule = "inclusive"
    """As an output: whether coordinates reach both ends of the grid; "exclusive" for the released video model."""
    noise: float = 0.0
    """As an input, in training: standard deviation of added noise, in units of `std`."""
    num_points: int | None = None
    """As an output, in training: number of random patches of each sample that the loss is computed on; None: all."""
    loss_kind: Literal["mse", "l1"] = "mse"
    """As an output: squared or absolute differences, in units of `std`."""
    mean: tuple[float, ...] | None = None
    """Mean for normalisation, of each channel or of all together. Fitted if None."""
    std: tuple[float, ...] | None = None
    """Standard deviation for normalisation, of each channel or of all together. Fitted if None."""
    value_range: tuple[float, float] | None = None
    """Lowest and highest value, for PSNR and plots. Fitted if None."""
    conv_padding: ConvPadding = "same"
    """As an input with stem "conv": "same" as in JAX, where the models were trained; "symmetric" as in transformers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        as_sizes(self.size, self.axes, "size")
        as_sizes(self.patch, self.axes, "patch")
        check_axis_names(self.axis_names, self.axes)
        check_units(self.mean, self.std, self.channels)
        if self.stem == "conv" and self.axes == 1:
            raise ValueError("stem: conv is for images and video")
        if self.conv_padding != "same" and self.stem != "conv":
            raise ValueError(f"conv_padding: {self.conv_padding} has no effect without stem: conv; leave it out")

    @property
    def reads_parts(self) -> bool:
        """True if the input can be read as a Part; not after convolutions, where tokens depend on their neighbours."""
        return self.stem != "conv"

    @property
    def grid(self) -> tuple[int, ...]:
        """Grid of tokens at the trained size."""
        return self.grid_of(as_sizes(self.size, self.axes, "size"))

    def grid_of(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the grid of tokens for an input of this size."""
        if self.conv_padding == "symmetric":
            return tuple(n if p == 1 else symmetric_size(n, p) for n, p in zip(size, self.steps, strict=True))
        return token_grid(size, self.steps)

    @property
    def axis_units(self) -> tuple[tuple[float, float], ...]:
        """Coordinate of position 0, and distance of neighbouring positions, along each axis."""
        return ((0.0, 1.0),) * self.axes

    @property
    def named_axes(self) -> NamedAxes:
        """Axes along which tokens have coordinates: each at the middle of the values that it holds."""
        return NamedAxes.of_patches(self.axis_names, self.steps, self.axis_units, self.stem != "strided")

    @property
    def steps(self) -> tuple[int, ...]:
        """`patch` along each axis."""
        return as_sizes(self.patch, self.axes, "patch")

    def read(self, cell: Any, files: Files) -> np.ndarray:
        """Parse a cell: numbers in lists, the path of a .npy file, or the path of a file of this modality."""
        if not holds_file(cell) and (not isinstance(cell, str) or cell.lstrip().startswith("[")):
            return numbers(cell)
        with files.file(cell) as path:
            return array_file(path) if path.suffix.lower() == ".npy" else self.read_file(path)

    def read_file(self, path: Path) -> np.ndarray:
        """Load a file that is not .npy as [*size, C]; ValueError for a modality without a file format."""
        raise ValueError(f"{path}: a {type(self).__name__.lower()} is read from lists of numbers or a .npy file")

    @property
    def is_fitted(self) -> bool:
        """True if mean, standard deviation and range are known."""
        return None not in (self.mean, self.std, self.value_range)

    def summary(self, value: Any) -> Moments:
        """Return the moments of the elements whose channels are all finite."""
        if isinstance(value, Moments):
            return value
        pixels = self._array(value).reshape(-1, self.channels).astype(np.float64)
        pixels = pixels[np.isfinite(pixels).all(axis=-1)]
        low, high = pixels.min(initial=math.inf), pixels.max(initial=-math.inf)
        return Moments(len(pixels), pixels.sum(0), (pixels**2).sum(0), low, high)

    def fit(self, values: Iterable[Any]) -> "Grid":
        """Fit the mean and standard deviation of each channel, and the range of values, where they are not given."""
        if self.is_fitted:
            return self  # without loading any value
        # Accumulate sums in one pass: the values of a data set may not fit into memory.
        count, total, squares, low, high = 0, np.zeros(self.channels), np.zeros(self.channels), math.inf, -math.inf
        for one in map(self.summary, values):
            count, total, squares = count + one.count, total + one.total, squares + one.squares
            low, high = min(low, one.low), max(high, one.high)
        if not count:
            return self
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        return replace(
            self,
            mean=self.mean or tuple(mean.tolist()),
            std=self.std or tuple(unit_std(std).tolist()),
            value_range=self.value_range or (float(low), float(high)),
        )

    def preprocess(self, value: Any, rng: np.random.Generator, training: bool) -> np.ndarray:
        """Return [*size, C] as float32; an array without an axis of channels gets one if there is one channel."""
        return self._array(value)

    def target(self, value: Any, rng: np.random.Generator, prepared: Mapping[str, Any], training: bool) -> Any:
        """Return the grid; in training with `num_points`, random patches of the grid as {"values", "index"}.

        A series is decoded at the length `size`: steps that a shorter one lacks are unknown, a longer one is a
        ValueError.
        """
        grid = self._array(value)
        if self.axes == 1:
            (size,) = as_sizes(self.size, 1, "size")
            if len(grid) > size:
                raise ValueError(f"{len(grid)} steps are more than size = {size}: raise size, or use a pointset")
            grid = np.pad(grid, ((0, size - len(grid)), (0, 0)), constant_values=np.nan)
        if not training or self.num_points is None:
            return grid
        patches = flattened_grid(space_to_depth(torch.from_numpy(grid)[None], self.steps))[0].numpy()
        index = rng.choice(len(patches), min(self.num_points, len(patches)), replace=False)
        return {"values": patches[index], "index": index}

    def collate(self, values: Sequence[Any]) -> Raw:
        """Stack grids of one size; pad series to the longest, in whole patches. Missing values are NaN and masked."""
        known = next(value for value in values if value is not None)
        # Targets that are random patches: a missing sample gets as many patches, unknown.
        if isinstance(known, dict):
            patches = [np.full_like(known["values"], np.nan) if v is None else v["values"] for v in values]
            index = [np.zeros_like(known["index"]) if v is None else v["index"] for v in values]
            return {"values": torch.from_numpy(np.stack(patches)), "index": torch.from_numpy(np.stack(index))}
        # The common size; a series has one patch at least, which is unknown if no sample has a step.
        sizes = {value.shape for value in values if value is not None}
        if len(sizes) > 1 and self.axes > 1:
            raise ValueError(f"one batch holds sizes {sorted(s[:-1] for s in sizes)}: crop or resize them to one")
        size = np.max([shape[:-1] for shape in sizes], axis=0)
        if self.axes == 1:
            size = np.maximum(size + -size % self.steps, self.steps)
        # Complete grids need no mask.
        same_size = {(*size.tolist(), self.channels)} == sizes
        if same_size and all(value is not None and np.isfinite(value).all() for value in values):
            return torch.from_numpy(np.stack(values))
        # Others are padded with NaN.
        batch = np.full((len(values), *size, self.channels), np.nan, np.float32)
        for sample, value in enumerate(values):
            if value is not None:
                batch[sample][tuple(map(slice, value.shape[:-1]))] = value
        tensor = torch.from_numpy(batch)
        return {"values": tensor, "mask": tensor.isfinite().all(dim=-1)}

    def dummy_input(self, batch_size: int, device: torch.device) -> Raw:
        """Return zeros."""
        return torch.zeros(batch_size, *as_sizes(self.size, self.axes, "size"), self.channels, device=device)

    def build_input(self) -> "GridInput":
        """Build the adapter from a grid to tokens of patches with their positions."""
        return GridInput(self)

    def build_query(self, inputs: Mapping[str, InputAdapter]) -> OutputQuery:
        """Build one query for each patch, from its position."""
        if self.positions is None and not self.axis_names:
            raise ValueError("queries on a grid differ by position: give positions, or axis_names for rotary ones")
        content = None if self.positions is not None else SharedContent(self.query_channels)
        query = PositionQuery(self.grid, self.positions, self.coordinate_rule, self.named_axes, content)
        return WholeQuery(query) if self.stem == "conv" else query

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> "GridOutput":
        """Build the adapter from decoded queries to patches to a grid."""
        return GridOutput(self, channels)

    @property
    def target_parts(self) -> tuple[str, ...]:
        """Name of the array of a raw target."""
        return ("values",)

    def checked_target(self, target: Any, device: torch.device) -> Raw:
        """Return a raw target as a dictionary; a tensor is taken for its values."""
        return super().checked_target(target if isinstance(target, Mapping) else {"values": target}, device)

    def points(self, target: Raw) -> Points | None:
        """Return the indices of the patches that `target` drew; None: the whole grid."""
        return Indices(target["index"]) if isinstance(target, Mapping) and "index" in target else None

    def loss(self, prediction: Raw, target: Raw) -> Tensor:
        """Return the mean difference over known values, in units of `std`."""
        values = target["values"] if isinstance(target, Mapping) else target
        values = same_shape(values, prediction.shape)
        # Unknown values must not reach the difference: a gradient through NaN is NaN, even where it is masked later.
        difference = self.normalise(prediction) - self.normalise(finite(floats(values)))
        return mean_where(difference.abs() if self.loss_kind == "l1" else difference**2, values.isfinite())

    def metrics(self) -> "dict[str, Metric]":
        """Return PSNR if the range of values is known, else the root mean squared error."""
        from torchmetrics import MeanSquaredError
        from torchmetrics.image import PeakSignalNoiseRatio

        if self.value_range is None:
            return {"rmse": MeanSquaredError(squared=False)}
        return {"psnr": PeakSignalNoiseRatio(data_range=self.value_range)}

    def metric_inputs(self, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor]:
        """Return predictions and targets of the known values, flat."""
        values = target["values"] if isinstance(target, Mapping) else target
        valid = same_shape(values, prediction.shape).isfinite()
        return prediction[valid], values[valid]

    def normalise(self, values: Tensor) -> Tensor:
        """Convert values from the data's units to the network's; the last axis may hold whole patches."""
        return values if not (self.mean or self.std) else normalised(values, self.mean, self.std)

    def denormalise(self, values: Tensor) -> Tensor:
        """Convert values from the network's units to the data's."""
        return values if not (self.mean or self.std) else denormalised(values, self.mean, self.std)

    def heat(self, sample: Raw, weights: Tensor) -> np.ndarray:
        """Return the attention weights of a sample's tokens, arranged on their grid."""
        grid = self.grid_of(values_of(sample).shape[:-1])
        return weights.detach().cpu().float().numpy()[: math.prod(grid)].reshape(grid)

    def _array(self, value: Any, dtype: type | None = np.float32) -> np.ndarray:
        array = as_array(value) if dtype is None else as_float32(value)
        array = array[..., None] if array.ndim == self.axes and self.channels == 1 else array
        if array.ndim != self.axes + 1 or array.shape[-1] != self.channels:
            shape = ", ".join("HWT"[i] if self.axes == 2 else f"n{i + 1}" for i in range(self.axes))
            raise ValueError(f"shape {array.shape} does not fit [{shape}, {self.channels}]{self._moved(array.shape)}")
        return array

    def _moved(self, shape: Sequence[int]) -> str:
        """Return a hint for the shape of one sample whose channels do not come last."""
        first = len(shape) == self.axes + 1 and self.channels in shape[:-1]
        return "; channels come last: move them there, as with np.moveaxis or .movedim" if first else ""


class GridInput(InputAdapter):
    """Adapter from a grid to tokens: the content of each patch, and its position."""

    def __init__(self, spec: Grid) -> None:
        super().__init__()
        self.spec, self.named_axes = spec, spec.named_axes
        self.stem: nn.Module | None = None
        # The content of a token: features of a convolutional stem, or values of a patch with an optional linear map.
        if spec.stem == "conv":
            width = spec.embed or 64
            *time, height_step, width_step = spec.steps
            if height_step != width_step or time not in ([], [1]):
                raise ValueError(
                    f"patch {spec.steps}: a convolutional stem shrinks both sides alike and leaves time alone"
                )
            self.stem = ConvStem(spec.channels, width, width_step, spec.conv_padding)
        else:
            width = spec.channels * (math.prod(spec.steps) if spec.stem == "patches" else 1)
            if spec.embed is not None:
                self.stem = plain_linear(width, spec.embed)
        self.content_channels = spec.embed or width
        # The positions, concatenated with the content or added to it.
        self.positions = None if spec.positions is None else Positions(spec.axes, spec.grid, spec.positions)
        position_channels = 0 if self.positions is None else self.positions.channels
        content_channels = self.content_channels
        if spec.add_positions and position_channels != content_channels:
            raise ValueError(f"positions {position_channels} wide cannot be added to content {content_channels} wide")
        self.channels = content_channels + (0 if spec.add_positions else position_channels)

    def forward(self, raw: Raw | Part) -> Segment:
        """Return the tokens, row-major."""
        # Unpack and check: values [B, *size, C], mask [B, *size] or None.
        raw, part = (raw.values, raw) if isinstance(raw, Part) else (raw, None)
        raw = raw if isinstance(raw, Mapping) else {"values": raw}
        check_keys(raw, ["values"], ["mask"])
        values, mask = floats(raw["values"]), raw.get("mask")
        shape, wrong_mask = tuple(values.shape), mask is not None and mask.ndim != self.spec.axes + 1
        if len(shape) != self.spec.axes + 2 or shape[-1] != self.spec.channels or 0 in shape or wrong_mask:
            sizes = ", ".join(f"n{axis + 1}" for axis in range(self.spec.axes))
            expected = f"[B, {sizes}, {self.spec.channels}]{self.spec._moved(shape[1:])}"
            raise ValueError(f"input of shape {shape}, expected {expected}{' and a mask without C' * wrong_mask}")
        # Normalise; an unknown value in a patch that is partly known becomes the mean.
        x = self.spec.normalise(values)
        if mask is not None:
            x = torch.where(mask[..., None], x, torch.zeros_like(x))
        if self.training and self.spec.noise:
            x = x + self.spec.noise * torch.randn_like(x)
        # Tokens [B, *grid, K], then as a segment with their positions and mask.
        tokens = self._tokens(x)
        grid = tuple(tokens.shape[1:-1])
        grid_positions = self._grid_positions(grid, part, tokens.device)
        segment = self._segment(flattened_grid(tokens), grid_positions, self._token_mask(values, mask))
        if mask is not None and self.spec.mask_prob is not None:
            segment = self._padded_for_missing(segment, grid_positions)
        return segment if part is None else replace(segment, extent=part.extent())

    def absent(self, device: torch.device) -> Segment:
        """Return as many tokens (zeros) as an input of the trained size has."""
        grid = self.spec.grid
        content = torch.zeros(1, math.prod(grid), self.content_channels, device=device)
        return self._segment(content, self._grid_positions(grid, None, device), None)

    def _tokens(self, x: Float[Tensor, "b *size c"]) -> Float[Tensor, "b *tokens k"]:
        """Return the content of the tokens on their grid."""
        spec, x = self.spec, x if self.stem is None else x.to(dtype_of(self.stem))
        if isinstance(self.stem, ConvStem):
            frames = x.flatten(0, -4)
            return self.stem(frames).unflatten(0, x.shape[:-3])
        x = space_to_depth(x, spec.steps) if spec.stem == "patches" else strided(x, spec.steps)
        return x if self.stem is None else self.stem(x)

    def _token_mask(self, values: Tensor, mask: Bool[Tensor, " b *size"] | None) -> Bool[Tensor, "b m"] | None:
        if mask is None:
            return None
        mask = mask[..., None]
        if self.spec.stem == "strided":
            return flattened_grid(strided(mask, self.spec.steps))[..., 0]
        # A patch is a token if any of its values is known.
        return reduce(flattened_grid(space_to_depth(mask, self.spec.steps)), "b m p -> b m", "any")

    def _grid_positions(self, grid: tuple[int, ...], part: Part | None, device: torch.device) -> GridPositions:
        if part is None:
            return GridPositions(grid, None if self.spec.stretched else self.spec.grid, device=device)
        return self._positions_of_part(grid, part, device)

    def _positions_of_part(self, grid: tuple[int, ...], part: Part, device: torch.device) -> GridPositions:
        spec = self.spec
        whole = as_sizes(spec.size if part.size is None else part.size, spec.axes, "size of the whole")
        start = part.start if isinstance(part.start, tuple | list) else ()
        whole_numbers = len(start) == spec.axes and all(map(is_whole, start))
        if not whole_numbers or any(n < 0 or n % step for n, step in zip(start, spec.steps, strict=True)):
            raise ValueError(f"a part begins at {part.start}: it must begin with a patch, at multiples of {spec.steps}")
        if max(*whole, *start) > MOST_POSITIONS:
            raise ValueError(
                f"a part at {part.start} of a whole of {whole}: a whole has at most 2^53 positions on an axis"
            )
        # In patches: the span of the positions, and the first patch of the part.
        span = token_grid(whole, spec.steps) if spec.stretched else spec.grid
        first = tuple(n // step for n, step in zip(part.start, spec.steps, strict=True))
        if spec.stretched and any(at + n > m for at, n, m in zip(first, grid, span, strict=True)):
            raise ValueError(f"a part of {grid} patches from patch {first} reaches beyond the whole of {span}")
        return GridPositions(grid, span, first, device=device)

    def _padded_for_missing(self, segment: Segment, grid_positions: GridPositions) -> Segment:
        """Pad the tokens to the trained number if a sample of the batch is missing.

        A missing sample gets mask tokens (`absent`): as many in this batch as it would get alone.
        """
        assert segment.content is not None
        assert segment.mask is not None
        mask, size, trained = segment.mask, grid_positions.size, math.prod(self.spec.grid)
        if segment.num_tokens >= trained or not may_hold(~mask.any(dim=1)):
            return segment
        # Lengthen the first axis until the grid holds the trained number of tokens.
        rows = -(-trained // math.prod(size[1:]))
        longer = replace(grid_positions, size=(rows, *size[1:]), span=grid_positions.span or size)
        more = math.prod(longer.size) - segment.num_tokens
        return self._segment(F.pad(segment.content, (0, 0, 0, more)), longer, F.pad(mask, (0, more)))

    def _segment(self, content: Tensor, grid_positions: GridPositions, mask: Tensor | None) -> Segment:
        positions = None if self.positions is None else self.positions.on_grid(grid_positions)
        axes, size, start = self.named_axes, grid_positions.size, grid_positions.start
        coordinates = axes.on_grid(size, start, content.device) if axes.names else None
        return Segment(content, positions, self.spec.add_positions, mask=mask, coordinates=coordinates, grid=size)


class GridOutput(OutputAdapter):
    """Adapter from decoded queries to patches, and from patches to a grid in the data's units."""

    def __init__(self, spec: Grid, channels: int) -> None:
        super().__init__()
        size = as_sizes(spec.size, spec.axes, "size")
        if spec.stem == "strided" or any(n % p for n, p in zip(size, spec.steps, strict=True)):
            raise ValueError(f"an output of size {size} needs a patch that divides it, not {spec.steps} ({spec.stem})")
        self.spec = spec
        self.head: nn.Module
        self.upsample: ConvUpsample | None = None
        if spec.conv_padding != "same":
            raise ValueError(f"conv_padding: {spec.conv_padding} is for inputs; leave it out of an output")
        if spec.stem == "conv":
            self.head = nn.Identity()
            self.upsample, self.mixes_neighbours = ConvUpsample(channels, spec.channels, spec.steps), True
        else:
            self.head = plain_linear(channels, spec.channels * math.prod(spec.steps))

    def forward(self, x: Float[Tensor, "b o e"], queries: Segment) -> Float[Tensor, "b *size c"]:
        """Return [B, *size, C] if the whole grid was decoded; else [B, O, values of a patch]."""
        if queries.grid is None:
            return self.spec.denormalise(x)
        tokens = x.unflatten(1, queries.grid)
        if self.upsample is not None:
            return self.spec.denormalise(self.upsample(tokens))
        return self.spec.denormalise(depth_to_space(tokens, self.spec.steps))


class WholeQuery(OutputQuery):
    """Queries of an output that mixes neighbours, so that the output can only be decoded whole."""

    def __init__(self, query: PositionQuery) -> None:
        super().__init__()
        self.query, self.channels = query, query.channels

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Return the queries of the whole grid."""
        if points is not None:
            raise ValueError("this output mixes neighbouring pixels by convolution: decode it whole, without points")
        return self.query(encoded, None)


def values_of(sample: Raw) -> np.ndarray:
    """Return the values of one sample of a raw batch, without its mask."""
    values = sample["values"] if isinstance(sample, Mapping) else sample
    return values.detach().cpu().float().numpy()
