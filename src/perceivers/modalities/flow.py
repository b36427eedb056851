"""Two frames in, the displacement of each pixel of the first out.

Raw: frames [B, 2, H, W, C] from -1 to 1, or {"values": those, "mask": [B]}; flow [B, H, W, 2] in pixels, (right, down),
NaN where unknown.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.core.arguments import floats
from perceivers.core.interfaces import InputAdapter, OutputAdapter, OutputQuery
from perceivers.core.layers import dtype_of, plain_linear
from perceivers.core.reading import Encoded
from perceivers.core.tokens import Segment
from perceivers.media.drawing import show_image
from perceivers.media.flow_colours import flow_colours
from perceivers.modalities.convolution import ConvStem
from perceivers.modalities.modality import Modality, Raw, input_of, mean_where, same_shape
from perceivers.modalities.patches import as_sizes, rows_of, surrounding_patches, token_grid
from perceivers.modalities.points import Points, at_points
from perceivers.modalities.position_encodings import Fourier, GridPlaces, PositionConfig, Positions
from perceivers.modalities.queries import InputQuery
from perceivers.modalities.raw import as_float32, check_keys, finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric

RESCALE = 100
"""What the official decoder divides the network's output by."""

SHRINK = 4
"""How many times smaller than the frames the grid behind a convolutional stem is, along each axis."""

BAD_PIXELS, BAD_PART = 3.0, 0.05
"""Fl counts a pixel whose error is above both this many pixels and this part of the true displacement (KITTI 2015)."""


@dataclass(frozen=True)
class FramePair(Modality):
    """Two frames, a token for each pixel: its surroundings in both, and its place (variants: paper section H)."""

    size: int | tuple[int, int] = (368, 496)
    """Height and width it is trained at; inputs may have any other."""
    channels: int = 3
    """Values of a pixel."""
    patch: int = 3
    """Side of the surroundings of a pixel that its token holds, of each frame; zeros beyond the border."""
    embed: int | None = 64
    """Width of a linear map of the surroundings, or of the convolutional stem; None: no map, or 64."""
    stem: Literal["patches", "conv"] = "patches"
    """What becomes a token: a pixel's surroundings, or convolution and max-pool, on a grid four times smaller."""
    separate: bool = False
    """A token for each pixel of each frame, placed in time too; otherwise one token holds both frames."""
    positions: PositionConfig = field(default_factory=lambda: Fourier(num_bands=64))
    """Position features of the tokens."""
    kind: Literal["frame_pair"] = "frame_pair"
    """Name in files."""

    def preprocess(self, value: Any, rng: np.random.Generator, training: bool) -> np.ndarray:
        """[2, H, W, C] as float32."""
        frames = as_float32(value)
        if frames.ndim != 4 or len(frames) != 2 or frames.shape[-1] != self.channels:
            raise ValueError(f"frames of shape {frames.shape}, expected (2, H, W, {self.channels})")
        return frames

    def collate(self, values: Sequence[Any]) -> Raw:
        """Pairs of one size stacked; with a missing one {"values", "mask" [B]}."""
        frames = stack_grids(values)
        if all(value is not None for value in values):
            return frames
        return {"values": frames.nan_to_num(0.0), "mask": torch.tensor([value is not None for value in values])}

    def dummy_input(self, batch_size: int, device: torch.device) -> Raw:
        """Zeros."""
        return torch.zeros(batch_size, 2, *as_sizes(self.size, 2, "size"), self.channels, device=device)

    def build_input(self) -> "FramePairInput":
        """A token for each pixel."""
        return FramePairInput(self)

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Both frames side by side."""
        frames = sample["values"] if isinstance(sample, Mapping) else sample
        show_image(axes, torch.cat(list(frames), dim=1).cpu().numpy(), (-1.0, 1.0))

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[FramePair, list[Any]]":
        """Five by seven; one pair is missing."""
        return cls(size=(5, 7), embed=11, positions=Fourier(num_bands=3)), [rng.normal(size=(2, 5, 7, 3)), None]


@dataclass(frozen=True)
class Flow(Modality):
    """Displacement of each pixel of the first frame, asked for with that frame's own tokens.

    Behind a convolutional stem each pixel is a convex combination of its nine nearest tokens' answers, as in RAFT.
    """

    of: str = "frames"
    """The frame pair."""
    scale: float = 20.0
    """Pixels of one unit of the official decoder's output (official notebook); 1 gives what transformers gives."""
    kind: Literal["flow"] = "flow"
    """Name in files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise ValueError(f"scale = {self.scale} must be above 0")

    def preprocess(self, value: Any, rng: np.random.Generator, training: bool) -> np.ndarray:
        """[H, W, 2] as float32."""
        flow = as_float32(value)
        if flow.ndim != 3 or flow.shape[-1] != 2:
            raise ValueError(f"flow of shape {flow.shape}, expected (H, W, 2)")
        return flow

    def collate(self, values: Sequence[Any]) -> Raw:
        """Stacked; NaN where missing."""
        return stack_grids(values)

    def build_query(self, inputs: Mapping[str, InputAdapter]) -> OutputQuery:
        """The first frame's tokens."""
        return FirstFrameQuery(self.of, _frame_pair(inputs, self.of))

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> "FlowOutput":
        """Pixels."""
        coarse = _frame_pair(inputs, self.of).spec.stem == "conv"
        return FlowOutput(channels, self.scale / RESCALE, SHRINK if coarse else 1)

    def loss(self, prediction: Raw, target: Raw) -> Tensor:
        """Mean distance in network units (neither paper nor code states the loss: a choice of ours)."""
        known = same_shape(target, prediction.shape).isfinite().all(dim=-1)
        difference = (prediction - finite(target)) / (self.scale / RESCALE)
        return mean_where(torch.linalg.vector_norm(difference, dim=-1), known)

    def metrics(self) -> "dict[str, Metric]":
        """Mean end-point error in pixels, and the part of pixels where it is large (KITTI's Fl)."""
        return {"epe": _mean_of(end_point_error), "fl": _mean_of(is_bad)}

    def metric_inputs(self, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor]:
        """Displacements of known pixels [P, 2]."""
        known = same_shape(target, prediction.shape).isfinite().all(dim=-1)
        return prediction[known], target[known]

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Hue is direction, saturation is distance."""
        axes.imshow(flow_colours(sample.detach().cpu().float().numpy()))
        axes.set_axis_off()

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[Flow, list[Any]]":
        """Five by seven; one is missing."""
        return cls(), [rng.normal(size=(5, 7, 2)), None]


class FramePairInput(InputAdapter):
    """A token for each pixel, or place of a coarser grid, of both frames together or of each."""

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
        self.positions = Positions(len(grid), grid, spec.positions)
        self.channels = width + self.positions.channels

    def forward(self, raw: Raw) -> Segment:
        """Tokens row-major, the first frame's first; a missing pair has none."""
        raw = raw if isinstance(raw, Mapping) else {"values": raw}
        check_keys(raw, ["values"], ["mask"])
        frames, mask = floats(raw["values"]), raw.get("mask")
        if frames.ndim != 5 or frames.shape[1] != 2 or frames.shape[-1] != self.spec.channels:
            raise ValueError(f"frames of shape {tuple(frames.shape)}, expected [B, 2, H, W, {self.spec.channels}]")
        content = self._content(frames)
        grid = tuple(content.shape[1:-1]) if self.spec.separate else tuple(content.shape[2:-1])
        positions = self.positions.on_grid(GridPlaces(grid, device=frames.device))
        content = rows_of(content)
        if mask is not None and mask.ndim != 1:
            raise ValueError(f"mask of shape {tuple(mask.shape)}, expected [B], True where there is a pair")
        mask = None if mask is None else mask[:, None].expand(-1, content.shape[1])
        return Segment(content, positions, mask=mask, grid=grid)

    def _content(self, frames: Float[Tensor, "b 2 h w c"]) -> Float[Tensor, "b t y x k"]:
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
    """The tokens of a frame pair that belong to the first frame; all of them where a token holds both."""

    def __init__(self, source: str, frames: FramePairInput) -> None:
        super().__init__()
        self.source, self.channels = source, frames.channels
        self.separate, self.whole = frames.spec.separate, frames.spec.stem == "conv"
        self.query = InputQuery(source, frames.channels)

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """One query for each token, or those at Indices."""
        if self.whole and points is not None:
            raise ValueError("convex upsampling mixes neighbouring places: decode the whole flow, without points")
        tokens = self.query(encoded, None)
        if self.separate and tokens.grid is not None:
            first = torch.arange(tokens.num_tokens // 2, device=tokens.device)
            tokens = replace(tokens.rows(first), grid=tokens.grid[1:])
        return at_points(tokens, points)


class FlowOutput(OutputAdapter):
    """Two numbers a pixel, in pixels; the network starts at no motion."""

    def __init__(self, channels: int, unit: float, shrink: int) -> None:
        super().__init__()
        self.unit = unit  # pixels of one unit of the head's output
        self.shrink = shrink
        self.mixes_neighbours = shrink > 1
        # The paper does not say where the weights of the combination come from: beside the flow, our choice.
        self.head = plain_linear(channels, 2 if shrink == 1 else 2 + 9 * shrink**2, zero=True)

    def forward(self, rows: Float[Tensor, "b o e"], queries: Segment) -> Float[Tensor, "b *grid 2"]:
        """[B, H, W, 2], or rows [B, O, 2] if only some pixels were asked for."""
        if queries.grid is None:
            return rows * self.unit
        grid = rows.unflatten(1, queries.grid)
        flow = grid[..., :2] * self.unit
        return flow if self.shrink == 1 else convex_upsample(flow, grid[..., 2:], self.shrink)


def convex_upsample(
    coarse: Float[Tensor, "b y x c"], logits: Float[Tensor, "b y x k"], factor: int
) -> Float[Tensor, "b h w c"]:
    """A grid `factor` times finer: each place weighs the 3 x 3 coarse ones around it, 0 beyond the border (RAFT)."""
    weights = rearrange(logits, "b y x (n p q) -> b y x n p q", n=9, p=factor).softmax(dim=3)
    around = rearrange(surrounding_patches(coarse[:, None], 3), "b 1 y x (n c) -> b y x n c", n=9)
    fine = torch.einsum("byxnpq,byxnc->bypxqc", weights, around)
    return rearrange(fine, "b y p x q c -> b (y p) (x q) c")


def end_point_error(prediction: Float[Tensor, "*b 2"], target: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b"]:
    """Distance of displacements in pixels."""
    return torch.linalg.vector_norm(prediction - target, dim=-1)


def is_bad(prediction: Float[Tensor, "*b 2"], target: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b"]:
    """1 where Fl counts a pixel, else 0."""
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
    """Arrays of one shape; NaN for None; ValueError where sizes differ."""
    shapes = {value.shape for value in values if value is not None}
    if len(shapes) > 1:
        raise ValueError(f"one batch holds sizes {sorted(shapes)}: crop or resize them to one")
    shape = next(iter(shapes))
    return torch.from_numpy(np.stack([np.full(shape, np.nan, np.float32) if v is None else v for v in values]))
