"""Augmentation of images in training, before they are resized: random crop, flip, RandAugment (paper A.1)."""

import math
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Shaped

from perceivers.media.resampling import CENTRE, centre_crop
from perceivers.modalities.randaugment import RandAugment, distorted

COVERED = 0.1
"""Smallest fraction of the image that a crop covers, whatever `area` allows (official `min_object_covered`)."""

Pixels = Shaped[np.ndarray, "h w c"]


@dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation; the defaults are those of the paper or its code."""

    area: tuple[float, float] | None = (0.08, 1.0)
    """Smallest and largest area of a crop, as a fraction of the image; None: no crop."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest ratio of a crop's width to its height."""
    attempts: int = 10
    """Number of crops to try; if none fits, the central square is taken, as in evaluation."""
    flip_prob: float = 0.5
    """Probability of mirroring left and right."""
    rand_augment: RandAugment | None = field(default_factory=RandAugment)
    """Colour and geometric operations, for images of three colours in bytes; None: none."""

    def __post_init__(self) -> None:
        for name, bounds, top in (("area", self.area or (1.0, 1.0), 1.0), ("aspect", self.aspect, math.inf)):
            low, high = bounds
            if not 0 < low <= high <= top:
                raise ValueError(f"{name} = {low, high} must be two growing numbers above 0, at most {top:g}")


def augmented(pixels: Pixels, config: Augmentation, rng: np.random.Generator) -> Shaped[np.ndarray, "_ _ c"]:
    """Return a crop of an image, mirrored with probability `flip_prob` and distorted; all draws come from `rng`."""
    pixels = random_crop(pixels, config, rng)
    if rng.random() < config.flip_prob:
        pixels = pixels[:, ::-1]
    if config.rand_augment is None:
        return pixels
    if pixels.dtype != np.uint8 or pixels.shape[2] != 3:
        raise ValueError(f"RandAugment takes bytes of three colours, not {pixels.dtype} of {pixels.shape[2]}")
    return distorted(np.ascontiguousarray(pixels), config.rand_augment, rng)


def random_crop(pixels: Pixels, config: Augmentation, rng: np.random.Generator) -> Shaped[np.ndarray, "_ _ c"]:
    """Return a crop of random aspect, height and position, drawn like TensorFlow's `sample_distorted_bounding_box`."""
    if config.area is None:
        return pixels
    height, width = pixels.shape[:2]
    least, most = (part * height * width for part in config.area)
    for _ in range(config.attempts):
        # Draw the size of the crop: its aspect, then its height.
        aspect = rng.uniform(*config.aspect)
        low, high = (round(math.sqrt(area / aspect)) for area in (least, most))
        rows = int(rng.integers(low, max(low, min(high, height, int((width + 0.5) / aspect))) + 1))
        columns = round(rows * aspect)
        # If the size fits, draw the position. The official code counts a crop of the whole image as a failure.
        fits = rows <= height and columns <= width and max(least, COVERED * height * width) <= rows * columns <= most
        if fits and (rows, columns) == (height, width):
            break
        if fits:
            top, left = (int(rng.integers(0, room + 1)) for room in (height - rows, width - columns))
            return pixels[top : top + rows, left : left + columns]
    return centre_crop(pixels, CENTRE)
