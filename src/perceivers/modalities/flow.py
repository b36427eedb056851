"""Two frames in, the displacement of each pixel of the first out.

Raw: frames [B, 2, H, W, C] from -1 to 1, or {"values": those, "mask": [B]}; flow [B, H, W, 2] in pixels, (right, down),
NaN where unknown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from perceivers.core.initialisers import plain_linear
from perceivers.core.interfaces import InputAdapter, OutputAdapter, OutputQuery
from perceivers.core.positions import Fourier, GridPlaces, PositionConfig, Positions
from perceivers.core.queries import InputQuery
from perceivers.core.tokens import Segment
from perceivers.media.flow import flow_colours
from perceivers.media.pictures import show_image
from perceivers.modalities.kind import Kind, Raw, input_of, mean_where
from perceivers.modalities.patches import as_sizes, rows_of, space_to_depth, surrounding_patches

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric

RESCALE = 100
"""What the official decoder divides the network's output by."""


@dataclass(frozen=True)
class FramePair(Kind):
    """Two frames, a token for each pixel: its surroundings in both, and its place."""

    size: int | tuple[int, int] = (368, 496)
    """Height and width it is trained at; inputs may have any other."""
    channels: int = 3
    """Values of a pixel."""
    patch: int = 3
    """Side of the surroundings of a pixel that its token holds, of each frame; zeros beyond the border."""
    embed: int | None = 64
    """Width of a linear map of both surroundings; None: no map."""
    positions: PositionConfig = field(default_factory=lambda: Fourier(num_bands=64))
    """Position features of the pixels."""
    kind: Literal["frame_pair"] = "frame_pair"
    """Name in files."""

    def prepare(self, value: Any, rng: np.random.Generator, training: bool) -> np.ndarray:
        """[2, H, W, C] as float32."""
        frames = np.asarray(value, np.float32)
        if frames.ndim != 4 or len(frames) != 2 or frames.shape[-1] != self.channels:
            raise ValueError(f"frames of shape {frames.shape}, expected (2, H, W, {self.channels})")
        return frames

    def collate(self, values: Sequence[Any]) -> Raw:
        """Pairs of one size stacked; with a missing one {"values", "mask" [B]}."""
        frames = stack_grids(values)
        if all(value is not None for value in values):
            return frames
        return {"values": frames.nan_to_num(0.0), "mask": torch.tensor([value is not None for value in values])}

    def blank(self, batch_size: int, device: torch.device) -> Raw:
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
class Flow(Kind):
    """Displacement of each pixel of the first frame, asked for with the frames' own tokens."""

    of: str = "frames"
    """The frame pair."""
    scale: float = 20.0
    """Pixels of one unit of the official decoder's output (official notebook); 1 gives what transformers gives."""
    kind: Literal["flow"] = "flow"
    """Name in files."""

    def prepare(self, value: Any, rng: np.random.Generator, training: bool) -> np.ndarray:
        """[H, W, 2] as float32."""
        flow = np.asarray(value, np.float32)
        if flow.ndim != 3 or flow.shape[-1] != 2:
            raise ValueError(f"flow of shape {flow.shape}, expected (H, W, 2)")
        return flow

    def collate(self, values: Sequence[Any]) -> Raw:
        """Stacked; NaN where missing."""
        return stack_grids(values)

    def build_query(self, inputs: Mapping[str, InputAdapter]) -> OutputQuery:
        """The frames' tokens."""
        return InputQuery(self.of, input_of(inputs, self.of).channels)

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> "FlowOutput":
        """Pixels."""
        return FlowOutput(channels, self.scale / RESCALE)

    def loss(self, prediction: Raw, target: Raw) -> Tensor:
        """Mean distance in network units (neither paper nor code states the loss: a choice of ours)."""
        known = target.isfinite().all(dim=-1)
        difference = (prediction - target.nan_to_num(0.0)) / (self.scale / RESCALE)
        return mean_where(torch.linalg.vector_norm(difference, dim=-1), known)

    def metrics(self) -> "dict[str, Metric]":
        """Mean end-point error in pixels."""
        from torchmetrics import MeanAbsoluteError

        return {"epe": MeanAbsoluteError()}

    def compared(self, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor]:
        """Distances of known pixels, beside 0."""
        known = target.isfinite().all(dim=-1)
        distance = torch.linalg.vector_norm(prediction[known] - target[known], dim=-1)
        return distance, torch.zeros_like(distance)

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Hue is direction, saturation is distance."""
        axes.imshow(flow_colours(sample.detach().cpu().float().numpy()))
        axes.set_axis_off()

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[Flow, list[Any]]":
        """Five by seven; one is missing."""
        return cls(), [rng.normal(size=(5, 7, 2)), None]


class FramePairInput(InputAdapter):
    """A token for each pixel: its surroundings in both frames through a linear map, and its place."""

    def __init__(self, spec: FramePair) -> None:
        super().__init__()
        self.spec = spec
        width = 2 * spec.patch**2 * spec.channels
        self.embed = None if spec.embed is None else plain_linear(width, spec.embed)
        self.positions = Positions(2, as_sizes(spec.size, 2, "size"), spec.positions)
        self.channels = (spec.embed or width) + self.positions.channels

    def forward(self, raw: Raw) -> Segment:
        """Tokens row-major; a missing pair has none."""
        frames, mask = (raw["values"], raw["mask"]) if isinstance(raw, Mapping) else (raw, None)
        if frames.ndim != 5 or frames.shape[1] != 2 or frames.shape[-1] != self.spec.channels:
            raise ValueError(f"frames of shape {tuple(frames.shape)}, expected [B, 2, H, W, {self.spec.channels}]")
        grid = (frames.shape[2], frames.shape[3])
        patches = surrounding_patches(frames, self.spec.patch)
        content = rows_of(rearrange(space_to_depth(patches, (2, 1, 1)), "b 1 h w c -> b h w c"))
        content = content if self.embed is None else self.embed(content)
        positions = self.positions.on_grid(GridPlaces(grid, device=frames.device))
        mask = None if mask is None else mask[:, None].expand(-1, grid[0] * grid[1])
        return Segment(content, positions, mask=mask, grid=grid)


class FlowOutput(OutputAdapter):
    """Two numbers a pixel, in pixels; the network starts at no motion."""

    def __init__(self, channels: int, unit: float) -> None:
        super().__init__()
        self.unit = unit  # pixels of one unit of the head's output
        self.head = plain_linear(channels, 2, zero=True)

    def forward(self, rows: Float[Tensor, "b o 2"], queries: Segment) -> Float[Tensor, "b *grid 2"]:
        """[B, H, W, 2], or rows [B, O, 2] if only some pixels were asked for."""
        rows = rows * self.unit
        return rows if queries.grid is None else rows.unflatten(1, queries.grid)


def stack_grids(values: Sequence[np.ndarray | None]) -> Tensor:
    """Arrays of one shape; NaN for None; ValueError where sizes differ."""
    shapes = {value.shape for value in values if value is not None}
    if len(shapes) > 1:
        raise ValueError(f"one batch holds sizes {sorted(shapes)}: crop or resize them to one")
    shape = next(iter(shapes))
    return torch.from_numpy(np.stack([np.full(shape, np.nan, np.float32) if v is None else v for v in values]))
