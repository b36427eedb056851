"""Images and video."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from perceivers.media.drawing import show_heat, show_image
from perceivers.media.image_files import picture_pixels, read_image
from perceivers.media.resampling import centre_crop, resize
from perceivers.media.video_files import read_video
from perceivers.modalities.augmentation import Augmentation, augmented
from perceivers.modalities.grid import Grid, values_of
from perceivers.modalities.modality import Raw
from perceivers.modalities.patches import as_sizes
from perceivers.modalities.position_encodings import Fourier
from perceivers.modalities.raw import is_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Image(Grid):
    """An image [H, W, C]; a record holds an array, a picture of Pillow, or the path of a file."""

    axes: ClassVar[int] = 2
    channels: int = 3
    """Number of values of a pixel."""
    crop: float | None = None
    """As an input: side of a central crop as a fraction of the short side; it is resized to `size`. None: no crop."""
    augmentation: Augmentation | None = None
    """As an input, in training, in place of `crop`: random crops resized to `size`, flips and distortions."""
    read_fields: ClassVar[tuple[str, ...]] = ("size", "channels", "crop")
    kind: Literal["image"] = "image"
    """Name in schema files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop is not None and not 0 < self.crop <= 1:
            raise ValueError(f"crop = {self.crop} must be above 0 and at most 1, or None")

    def read_file(self, path: Path) -> np.ndarray:
        """Load a picture, values 0 to 255, in grey for one channel; resized to `size` unless `crop` does that later."""
        if self.crop is not None:
            return _shades(read_image(path), self.channels)
        return _sized(read_image(path), as_sizes(self.size, 2, "size"), self.channels)

    def preprocess(self, value: Any, rng: np.random.Generator, training: bool) -> np.ndarray:
        """Return the image as float32, cropped and resized to `size` if configured, otherwise in its original size."""
        if training and self.augmentation is not None:
            pixels = augmented(self._array(value, None), self.augmentation, rng)
        elif self.crop is not None:
            pixels = centre_crop(self._array(value, None), self.crop)
        else:
            return self._array(value)
        height, width = as_sizes(self.size, 2, "size")
        return resize(pixels, (height, width))

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Draw the image."""
        show_image(axes, values_of(sample), self.value_range)

    def attention_picture(self, axes: "Axes", sample: Raw, weights: Float[Tensor, " m"]) -> None:
        """Draw the attention over the image."""
        self.picture(axes, sample)
        show_heat(axes, self.heat(sample, weights))

    def _array(self, value: Any, dtype: type | None = np.float32) -> np.ndarray:
        if isinstance(value, Path):
            value = _shades(read_image(value), self.channels)
        return super()._array(_shades(picture_pixels(value), self.channels) if is_picture(value) else value, dtype)

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[Image, list[Any]]":
        """Return images of five by seven pixels; the second is missing."""
        return cls(size=(5, 7), positions=Fourier(num_bands=3)), [rng.normal(size=(5, 7, 3)), None]


@dataclass(frozen=True)
class Video(Grid):
    """A video, frames [T, H, W, C]."""

    axes: ClassVar[int] = 3
    size: int | tuple[int, ...] = (16, 32, 32)
    """Frames, height and width in training; inputs may have any other size."""
    channels: int = 3
    """Number of values of a pixel."""
    read_fields: ClassVar[tuple[str, ...]] = ("size", "channels")
    kind: Literal["video"] = "video"
    """Name in schema files."""

    def read_file(self, path: Path) -> np.ndarray:
        """Load equidistant frames of a video, the first and the last included, values 0 to 255, resized to `size`."""
        count, *size = as_sizes(self.size, 3, "size")
        frames = read_video(path).frames
        chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
        return np.stack([_sized(frames[number], tuple(size), self.channels) for number in chosen])

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Draw four frames side by side."""
        values = values_of(sample)
        show_image(axes, np.concatenate(list(values[_shown(len(values))]), axis=1), self.value_range)

    def attention_picture(self, axes: "Axes", sample: Raw, weights: Float[Tensor, " m"]) -> None:
        """Draw the attention over the frames."""
        self.picture(axes, sample)
        heat = self.heat(sample, weights)
        chosen = _shown(len(values_of(sample))) // self.steps[0]
        show_heat(axes, np.concatenate(list(heat[chosen]), axis=1))

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[Video, list[Any]]":
        """Return two frames of six by five pixels, in patches of 1 x 2 x 5; one video is missing."""
        spec = cls(size=(2, 6, 5), patch=(1, 2, 5), positions=Fourier(num_bands=2))
        return spec, [rng.normal(size=(2, 6, 5, 3)), rng.normal(size=(2, 6, 5, 3)), None]


def _sized(pixels: np.ndarray, size: tuple[int, ...], channels: int) -> np.ndarray:
    """Resize [H, W, 3] to float32 [*size, channels], averaging over areas if both sides shrink."""
    pixels = _shades(pixels, channels)
    height, width = size
    if pixels.shape[:2] == size:
        return pixels.astype(np.float32)
    shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
    return resize(pixels, (height, width), "area" if shrinks else "bilinear")


def _shades(pixels: np.ndarray, channels: int) -> np.ndarray:
    return pixels.mean(axis=-1, keepdims=True) if channels == 1 else pixels


def _shown(num_frames: int) -> np.ndarray:
    """Return the numbers of the frames that are drawn."""
    return np.linspace(0, num_frames - 1, min(4, num_frames)).astype(int)
