"""Optical flow: the input is two frames, the output the displacement of each pixel of the first frame.

A raw input is frames [B, 2, H, W, C] from -1 to 1, or {"values": frames, "mask": [B]}. A raw flow is [B, H, W, 2] in
pixels, (right, down), NaN where unknown.

    flow = unit * head(decoded query),  unit = scale / RESCALE pixels;  loss = mean of |flow - true| / unit, where known
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.core.interfaces import InputAdapter, OutputAdapter, OutputQuery
from perceivers.core.layers import dtype_of, plain_linear
from perceivers.core.precision import floats
from perceivers.core.reading import Encoded
from perceivers.core.tokens import Segment
from perceivers.media.drawing import show_image
from perceivers.media.flow_colours import flow_colours
from perceivers.modalities.convolution import ConvStem
from perceivers.modalities.modality import Modality, Raw, input_of, mean_where, same_shape
from perceivers.modalities.patches import as_sizes, flattened_grid, surrounding_patches, token_grid
from perceivers.modalities.places import NamedAxes, check_axis_names
from perceivers.modalities.points import Points, at_points
from perceivers.modalities.position_encodings import Fourier, GridPositions, PositionConfig, Positions
from perceivers.modalities.queries import InputQuery
from perceivers.modalities.raw import as_float32, check_keys, finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric

RESCALE = 100
"""Divisor of the network's output in the official decoder."""

SHRINK = 4
"""Factor by which a convolutional stem shrinks the frames, along each axis."""

BAD_PIXELS, BAD_PART = 3.0, 0.05
"""Thresholds of Fl: it counts errors above both BAD_PIXELS and BAD_PART of the true displacement (KITTI 2015)."""


@dataclass(frozen=True)
class FramePair(Modality):
    """Two frames with a token for each pixel: the patches around it, and its position (variants: paper section H)."""

    size: int | tuple[int, int] = (368, 496)
    """Height and width in training; inputs may have any other size."""
    channels: int = 3
    """Number of values of a pixel."""
    patch: int = 3
    """Side of the patch around a pixel that its token holds from each frame; zeros beyond the border."""
    embed: int | None = 64
    """Width of a linear map of the patches, or of the convolutional stem; None: no map, or 64."""
    stem: Literal["patches", "conv"] = "patches"
    """Content of a token: the patches around a pixel, or convolution and max-pool, on a grid four times smaller."""
    separate: bool = False
    """True: a token for each pixel of each frame, with a position in time too; False: one token holds both frames."""
    positions: PositionConfig | None = field(default_factory=lambda: Fourier(num_bands=64))
    """Position features of the tokens; None: none."""
    axis_names: tuple[str, ...] = ()
    """Names of the axes (vertical, horizontal; with `separate`, first that of time), along which tokens, and the
    queries of the flow, then have coordinates in pixels (frames) for rotary positions."""
    kind: Literal["frame_pair"] = "frame_pair"
    """Name in schema files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_axis_names(self.axis_names, 3 if self.separate else 2)

    @property
    def named_axes(self) -> NamedAxes:
        """Axes along which tokens have coordinates."""
        side = SHRINK if self.stem == "conv" else 1
        patch = (1, side, side) if self.separate else (side, side)
        return NamedAxes.of_patches(self.axis_names, patch, ((0.0, 1.0),) * len(patch))

    def preprocess(self, value: Any, rng: np.random.Generator, training: bool) -> np.ndarray:
        """Return [2, H, W, C] as float32."""
        frames = as_float32(value)
        if frames.ndim != 4 or len(frames) != 2 or frames.shape[-1] != self.channels:
            raise ValueError(f"frames of shape {frames.shape}, expected (2, H, W, {self.channels})")
        return frames

    def collate(self, values: Sequence[Any]) -> Raw:
        """Stack pairs of one size; if one is missing, return {"values", "mask"}."""
        frames = stack_grids(values)
        if all(value is not None for value in values):
            return frames
        return {"values": frames.nan_to_num(0.0), "mask": torch.tensor([value is not None for value in values])}

    def dummy_input(self, batch_size: int, device: torch.device) -> Raw:
        """Return zeros."""
        return torch.zeros(batch_size, 2, *as_sizes(self.size, 2, "size"), self.channels, device=device)

    def build_input(self) -> "FramePairInput":
        """Build the adapter with a token for each pixel."""
        return FramePairInput(self)

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Draw both frames side by side."""
        frames = sample["values"] if isinstance(sample, Mapping) else sample
        show_image(axes, torch.cat(list(frames), dim=1).cpu().numpy(), (-1.0, 1.0))

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[FramePair, list[Any]]":
        """Return pairs of five by seven pixels; one is missing."""
        return cls(size=(5, 7), embed=11, positions=Fourier(num_bands=3)), [rng.normal(size=(2, 5, 7, 3)), None]


@dataclass(frozen=True)
class Flow(Modality):
    """Displacement of each pixel of the first frame; the queries are that frame's tokens.

    After a convolutional stem, a pixel's flow is a convex combination of the flows of its nine nearest tokens (RAFT).
    """

    of: str = "frames"
    """Name of the frame pair's input."""
    scale: float = 20.0
    """Pixels in one unit of the official decoder's output (official notebook); 1 gives the outputs of transformers."""
    kind: Literal["flow"] = "flow"
    """Name in schema files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise ValueError(f"scale = {self.scale} must be above 0")

    def preprocess(self, value: Any, rng: np.random.Generator, training: bool) -> np.ndarray:
        """Return [H, W, 2] as float32."""
        flow = as_float32(value)
        if flow.ndim != 3 or flow.shape[-1] != 2:
            raise ValueError(f"flow of shape {flow.shape}, expected (H, W, 2)")
        return flow

    def collate(self, values: Sequence[Any]) -> Raw:
        """Stack flows of one size; NaN where missing."""
        return stack_grids(values)

    def build_query(self, inputs: Mapping[str, InputAdapter]) -> OutputQuery:
        """Build the queries: the first frame's tokens."""
        return FirstFrameQuery(self.of, _frame_pair(inputs, self.of))

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> "FlowOutput":
        """Build the adapter from decoded queries to displacements in pixels."""
        coarse = _frame_pair(inputs, self.of).spec.stem == "conv"
        return FlowOutput(channels, self.scale / RESCALE, SHRINK if coarse else 1)

    def loss(self, prediction: Raw, target: Raw) -> Tensor:
        """Return the mean end-point error in network units (our choice: neither paper nor code states the loss)."""
        known = same_shape(target, prediction.shape).isfinite().all(dim=-1)
        difference = (prediction - finite(target)) / (self.scale / RESCALE)
        return mean_where(torch.linalg.vector_norm(difference, dim=-1), known)

    def metrics(self) -> "dict[str, Metric]":
        """Return the mean end-point error in pixels, and the fraction of pixels where it is large (KITTI's Fl)."""
        return {"epe": _mean_of(end_point_error), "fl": _mean_of(is_bad)}

    def metric_inputs(self, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor]:
        """Return predicted and true displacements [P, 2] of the known pixels."""
        known = same_shape(target, prediction.shape).isfinite().all(dim=-1)
        return prediction[known], target[known]

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Draw the flow in colours: hue is direction, saturation is distance."""
        axes.imshow(flow_colours(sample.detach().cpu().float().numpy()))
        axes.set_axis_off()

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[Flow, list[Any]]":
        """Return flows of five by seven pixels; one is missing."""
        return cls(), [rng.normal(size=(5, 7, 2)), None]


class FramePairInput(InputAdapter):
    """Adapter with a token for each pixel (or position of a coarser grid) of both frames together, or of each."""

    def __init__(self, spec: FramePair) -> None:
        super().__init__()
        self.spec = spec
        frames, size = 1 if spec.separate else 2, as_sizes(spec.size, 2, "size")
        self.stem: ConvStem | None = None
        self.embed: nn.Linear | None = None
        if spec.stem == "conv":
            width = spec.embed or 64
            self.stem = ConvStem(frames * spec.channels, width, SHRINK)
            size = token_grid(size, (SHRINK, SHRINK))
        else:
            width = frames * spec.patch**2 * spec.channels
            if spec.embed is not None:
                self.embed, width = plain_linear(width, spec.embed), spec.embed
        grid = (2, *size) if spec.separate else size
        self.positions = None if spec.positions is None else Positions(len(grid), grid, spec.positions)
        self.channels = width + (0 if self.positions is None else self.positions.channels)

    def forward(self, raw: Raw) -> Segment:
        """Return the tokens, row-major, the first frame's first; a missing pair has no valid token."""
        raw = raw if isinstance(raw, Mapping) else {"values": raw}
        check_keys(raw, ["values"], ["mask"])
        frames, mask = floats(raw["values"]), raw.get("mask")
        if frames.ndim != 5 or frames.shape[1] != 2 or frames.shape[-1] != self.spec.channels:
            raise ValueError(f"frames of shape {tuple(frames.shape)}, expected [B, 2, H, W, {self.spec.channels}]")
        content = self._content(frames)
        grid = tuple(content.shape[1:-1]) if self.spec.separate else tuple(content.shape[2:-1])
        positions = None
        if self.positions is not None:
            positions = self.positions.on_grid(GridPositions(grid, device=frames.device))
        content = flattened_grid(content)
        if mask is not None and mask.ndim != 1:
            raise ValueError(f"mask of shape {tuple(mask.shape)}, expected [B], True where there is a pair")
        mask = None if mask is None else mask[:, None].expand(-1, content.shape[1])
        coordinates = self.spec.named_axes.on_grid(grid, None, frames.device)
        return Segment(content, positions, mask=mask, coordinates=coordinates, grid=grid)

    def _content(self, frames: Float[Tensor, "b 2 h w c"]) -> Float[Tensor, "b t y x k"]:
        """Return the content of the tokens; t is 2 if they are separate, else 1: frames are joined along channels."""
        joined = (lambda x: x) if self.spec.separate else (lambda x: rearrange(x, "b t h w c -> b 1 h w (t c)"))
        if self.stem is not None:
            if any(n % SHRINK for n in frames.shape[2:4]):
                raise ValueError(
                    f"frames of {tuple(frames.shape[2:4])} must be multiples of {SHRINK}: crop or pad them"
                )
            frames = joined(frames.to(dtype_of(self.stem)))
            return self.stem(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        patches = joined(surrounding_patches(frames, self.spec.patch))
        return patches if self.embed is None else self.embed(patches.to(dtype_of(self.embed)))


class FirstFrameQuery(OutputQuery):
    """Queries from the tokens of the first frame of a pair; from all tokens if a token holds both frames."""

    def __init__(self, source: str, frames: FramePairInput) -> None:
        super().__init__()
        self.source, self.channels = source, frames.channels
        self.separate, self.whole = frames.spec.separate, frames.spec.stem == "conv"
        self.query = InputQuery(source, frames.channels)

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Return one query for each token, or those at Indices."""
        if self.whole and points is not None:
            raise ValueError("convex upsampling mixes neighbouring pixels: decode the whole flow, without points")
        tokens = self.query(encoded, None)
        if self.separate and tokens.grid is not None:
            first = torch.arange(tokens.num_tokens // 2, device=tokens.device)
            tokens = replace(tokens.at(first), grid=tokens.grid[1:])
        return at_points(tokens, points)


class FlowOutput(OutputAdapter):
    """Adapter from decoded queries to the flow in pixels; at initialisation the flow is 0."""

    def __init__(self, channels: int, unit: float, shrink: int) -> None:
        super().__init__()
        self.unit = unit  # pixels in one unit of the head's output
        self.shrink = shrink
        self.mixes_neighbours = shrink > 1
        # The paper does not say what computes the weights of the convex combination; here the same head (our choice).
        self.head = plain_linear(channels, 2 if shrink == 1 else 2 + 9 * shrink**2, zero=True)

    def forward(self, x: Float[Tensor, "b o e"], queries: Segment) -> Float[Tensor, "b *grid 2"]:
        """Return [B, H, W, 2], or [B, O, 2] if only some pixels were decoded."""
        if queries.grid is None:
            return x * self.unit
        grid = x.unflatten(1, queries.grid)
        flow = grid[..., :2] * self.unit
        return flow if self.shrink == 1 else convex_upsample(flow, grid[..., 2:], self.shrink)


def convex_upsample(
    coarse: Float[Tensor, "b y x c"], logits: Float[Tensor, "b y x k"], factor: int
) -> Float[Tensor, "b h w c"]:
    """Return a grid `factor` times finer: convex combinations of the 3 x 3 coarse values around each position (RAFT).

    Values beyond the border are 0; `logits` of each coarse position hold 9 factor^2 weights.
    """
    weights = rearrange(logits, "b y x (n p q) -> b y x n p q", n=9, p=factor).softmax(dim=3)
    around = rearrange(surrounding_patches(coarse[:, None], 3), "b 1 y x (n c) -> b y x n c", n=9)
    fine = torch.einsum("byxnpq,byxnc->bypxqc", weights, around)
    return rearrange(fine, "b y p x q c -> b (y p) (x q) c")


def end_point_error(prediction: Float[Tensor, "*b 2"], target: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b"]:
    """Return the distance of displacements, in pixels."""
    return torch.linalg.vector_norm(prediction - target, dim=-1)


def is_bad(prediction: Float[Tensor, "*b 2"], target: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b"]:
    """Return 1 for the pixels that Fl counts, else 0."""
    error, size = end_point_error(prediction, target), torch.linalg.vector_norm(target, dim=-1)
    return ((error > BAD_PIXELS) & (error > BAD_PART * size)).to(error.dtype)


def _mean_of(function: Callable[[Tensor, Tensor], Tensor]) -> "Metric":
    from torchmetrics import MeanMetric

    class MeanOf(MeanMetric):
        def update(self, prediction: Tensor, target: Tensor) -> None:
            super().update(function(prediction, target))

    return MeanOf()


def _frame_pair(inputs: Mapping[str, InputAdapter], name: str) -> FramePairInput:
    source = input_of(inputs, name)
    if not isinstance(source, FramePairInput):
        raise ValueError(f"of = {name!r} must name a frame pair")
    return source


def stack_grids(values: Sequence[np.ndarray | None]) -> Tensor:
    """Stack arrays of one shape, NaN for None; ValueError if shapes differ."""
    shapes = {value.shape for value in values if value is not None}
    if len(shapes) > 1:
        raise ValueError(f"one batch holds sizes {sorted(shapes)}: crop or resize them to one")
    shape = next(iter(shapes))
    return torch.from_numpy(np.stack([np.full(shape, np.nan, np.float32) if v is None else v for v in values]))
