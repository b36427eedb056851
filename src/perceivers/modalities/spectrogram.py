"""The log-mel spectrogram of audio, which is read like an image."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from perceivers.media.audio_files import read_audio, to_mono, to_rate
from perceivers.media.mel import log_mel
from perceivers.modalities.grid import Grid
from perceivers.modalities.modality import Raw
from perceivers.modalities.patches import as_sizes
from perceivers.modalities.position_encodings import Fourier
from perceivers.modalities.raw import as_float32

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Spectrogram(Grid):
    """Log-mel power [steps, bands, 1] of one channel of audio; a record holds the samples, [n] or [n, 1]."""

    axes: ClassVar[int] = 2
    size: int | tuple[int, ...] = (64, 40)
    """Number of time steps in training, and number of bands."""
    rate: int = 16_000
    """Sampling rate in Hz; audio files are resampled to it."""
    hop: int = 160
    """Number of samples from one step to the next."""
    window: int = 400
    """Number of samples in the window of a step."""
    read_fields: ClassVar[tuple[str, ...]] = ("size", "rate", "hop")
    kind: Literal["spectrogram"] = "spectrogram"
    """Name in schema files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels != 1:
            raise ValueError(f"channels = {self.channels}: a spectrogram has one channel of sound")

    @property
    def axis_units(self) -> tuple[tuple[float, float], ...]:
        """Coordinate of position 0, and distance of neighbouring positions: in seconds; in bands."""
        return ((self.hop - 1) / 2 / self.rate, self.hop / self.rate), (0.0, 1.0)

    def read_file(self, path: Path) -> np.ndarray:
        """Load the first samples of an audio file, as many as `size` needs, padded with zeros."""
        samples, rate = read_audio(path)
        samples = to_rate(to_mono(samples), rate, self.rate)
        length = as_sizes(self.size, 2, "size")[0] * self.hop
        return np.pad(samples[:length], ((0, max(length - len(samples), 0)), (0, 0)))

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Draw the spectrogram, time to the right and frequency upwards."""
        values = sample["values"] if isinstance(sample, dict) else sample
        axes.imshow(values[..., 0].detach().cpu().T, origin="lower", aspect="auto", cmap="magma")
        axes.set_axis_off()

    def _array(self, value: Any, dtype: type | None = np.float32) -> np.ndarray:
        samples = as_float32(value)
        if samples.ndim == 2 and samples.shape[1] == 1:
            samples = samples[:, 0]
        if samples.ndim != 1:
            raise ValueError(f"samples of shape {samples.shape}, expected one channel of sound: [n] or [n, 1]")
        return log_mel(samples, self.rate, as_sizes(self.size, 2, "size")[1], self.hop, self.window)[..., None]

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[Spectrogram, list[Any]]":
        """Return five steps of seven bands; the second sample is missing."""
        spec = cls(size=(5, 7), hop=53, window=101, rate=1009, positions=Fourier(num_bands=3))
        return spec, [rng.normal(size=5 * 53), None]
