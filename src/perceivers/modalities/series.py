"""Values over time: series and audio."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from perceivers.media.audio_files import read_audio, to_mono, to_rate
from perceivers.media.drawing import show_heat
from perceivers.modalities.grid import Grid, values_of
from perceivers.modalities.modality import Raw
from perceivers.modalities.patches import as_sizes
from perceivers.modalities.position_encodings import Fourier

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Series(Grid):
    """Channels over time [n, C], of any length; the distance between positions does not depend on the length."""

    axes: ClassVar[int] = 1
    stretched: ClassVar[bool] = False
    size: int | tuple[int, ...] = 256
    """Length in training; inputs may have any other length."""
    step: float | None = None
    """Distance of neighbouring positions in units of the coordinates (`axis_names`); None: 1."""
    read_fields: ClassVar[tuple[str, ...]] = ()
    kind: Literal["series"] = "series"
    """Name in schema files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step is not None and not (0 < self.step < math.inf and self.axis_names):
            right = "a finite number above 0" if self.axis_names else "left out: it has no effect without axis_names"
            raise ValueError(f"step = {self.step!r:.99} must be {right}")

    @property
    def axis_units(self) -> tuple[tuple[float, float], ...]:
        """Coordinate of position 0, and distance of neighbouring positions."""
        return ((0.0, self.step or 1.0),)

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Draw a line for each channel."""
        axes.plot(values_of(sample), linewidth=0.8)

    def attention_picture(self, axes: "Axes", sample: Raw, weights: Float[Tensor, " m"]) -> None:
        """Draw the attention behind the lines."""
        values, heat = values_of(sample), self.heat(sample, weights)
        axes.set(xlim=(0, len(values)), ylim=(np.nanmin(values), np.nanmax(values)))
        show_heat(axes, heat[None])
        axes.plot(np.arange(len(values)) + 0.5, values, linewidth=0.8, zorder=3)

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[Series, list[Any]]":
        """Return ragged series of two channels; one is missing."""
        values = [rng.normal(size=(7, 2)), rng.normal(size=(11, 2)), None]
        return cls(size=11, channels=2, positions=Fourier(num_bands=3)), values


@dataclass(frozen=True)
class Audio(Series):
    """Audio samples over time [n, C], several to a token."""

    size: int | tuple[int, ...] = 4096
    """Number of samples in training; inputs may have any other multiple of `patch`."""
    patch: int | tuple[int, ...] = 16
    """Number of samples that make one token."""
    rate: int | None = None
    """Sampling rate in Hz to which audio files are resampled; None: they are not."""
    step: float | None = None
    """Distance of neighbouring samples in units of the coordinates; None: 1 / `rate` seconds, or 1 without a rate."""
    read_fields: ClassVar[tuple[str, ...]] = ("size", "channels", "patch", "rate")
    kind: Literal["audio"] = "audio"  # type: ignore[assignment]
    """Name in schema files."""

    @property
    def axis_units(self) -> tuple[tuple[float, float], ...]:
        """Coordinate of sample 0, and distance of neighbouring samples."""
        return ((0.0, self.step or 1 / (self.rate or 1)),)

    @staticmethod
    def file_length(path: Path) -> tuple[int, int]:
        """Return the number of samples of an audio file, and its sampling rate in Hz."""
        samples, rate = read_audio(path)
        return len(samples), rate

    def read_file(self, path: Path) -> np.ndarray:
        """Load the first `size` samples of an audio file, padded with zeros to whole tokens; mixed if C = 1."""
        samples, rate = read_audio(path)
        samples = to_mono(samples) if self.channels == 1 else samples
        samples = samples if self.rate is None else to_rate(samples, rate, self.rate)
        samples = samples[: as_sizes(self.size, 1, "size")[0]]
        return np.pad(samples, ((0, -len(samples) % self.steps[0]), (0, 0)))

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[Audio, list[Any]]":
        """Return ragged audio in patches of five; one is missing."""
        return cls(size=35, patch=5, positions=Fourier(num_bands=3)), [rng.normal(size=35), rng.normal(size=20), None]
