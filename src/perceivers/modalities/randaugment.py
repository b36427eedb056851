"""RandAugment: random operations of one strength on images (arXiv:1909.13719; official autoaugment.py).

As in the official code, every drawn operation is applied (that code draws a probability, but ignores it). At the
paper's magnitude of 5 the four enhancements have a factor of 1 and change nothing, there as here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from perceivers.media.extra import library

FILL = (128, 128, 128)
"""Colour of pixels that are cut out, or to which no pixel was moved."""


@dataclass(frozen=True)
class RandAugment:
    """Number and strength of the operations; the defaults are those of the paper or its code."""

    num_layers: int = 4
    """Number of operations, drawn independently and applied one after the other."""
    magnitude: float = 5.0
    """Strength, from 0 to 10."""
    translation: int = 100
    """Distance in pixels of a translation at magnitude 10."""
    cutout: int = 40
    """Half the side in pixels of a cutout square at magnitude 10."""

    def __post_init__(self) -> None:
        if not 0 <= self.magnitude <= 10:
            raise ValueError(f"magnitude = {self.magnitude} must be from 0 to 10")

    @property
    def strength(self) -> float:
        """The magnitude, from 0 to 1."""
        return self.magnitude / 10


Operation = Callable[[Any, RandAugment, np.random.Generator], Any]
"""Function from a Pillow image to another of the same size."""


def distorted(
    pixels: UInt8[np.ndarray, "h w 3"], config: RandAugment, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Apply `num_layers` random operations to an image."""
    image = library("PIL.Image").fromarray(pixels)
    operations = list(OPERATIONS.values())
    for _ in range(config.num_layers):
        image = operations[rng.integers(len(operations))](image, config, rng)
    return np.asarray(image)


def signed(value: float, rng: np.random.Generator) -> float:
    """Return the value or its negative, with equal probability."""
    return value if rng.random() < 0.5 else -value


def moved(image: Any, shear_x: float = 0.0, shear_y: float = 0.0, right: float = 0.0, down: float = 0.0) -> Any:
    """Move pixels: the new pixel at (x, y) is the old one nearest (x + shear_x y + right, shear_y x + y + down)."""
    # The halves: coordinates here count from the centre of the first pixel, but Pillow's from its corner.
    matrix = (1, shear_x, right - shear_x / 2, shear_y, 1, down - shear_y / 2)
    return image.transform(image.size, library("PIL.Image").Transform.AFFINE, matrix, fillcolor=FILL)


def enhanced(image: Any, kind: str, config: RandAugment) -> Any:
    """Apply an enhancement of Pillow; `kind` is the name of its class."""
    return getattr(library("PIL.ImageEnhance"), kind)(image).enhance(1.8 * config.strength + 0.1)


def cut_out(image: Any, config: RandAugment, rng: np.random.Generator) -> Any:
    """Fill a square around a random pixel, as far as it lies inside the image."""
    half = int(config.strength * config.cutout)
    x, y = (int(rng.integers(0, side)) for side in image.size)
    pixels = np.array(image)
    pixels[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = FILL
    return library("PIL.Image").fromarray(pixels)


def solarize_add(image: Any, config: RandAugment, rng: np.random.Generator) -> Any:
    """Add up to 110 to values below 128."""
    added = int(config.strength * 110)
    return image.point([min(value + added, 255) if value < 128 else value for value in range(256)] * 3)


def _ops() -> Any:
    return library("PIL.ImageOps")


OPERATIONS: dict[str, Operation] = {
    "autocontrast": lambda image, config, rng: _ops().autocontrast(image),
    "equalize": lambda image, config, rng: _ops().equalize(image),
    "invert": lambda image, config, rng: _ops().invert(image),
    "rotate": lambda image, config, rng: image.rotate(signed(30 * config.strength, rng), fillcolor=FILL),
    "posterize": lambda image, config, rng: _ops().posterize(image, int(4 * config.strength)),
    "solarize": lambda image, config, rng: _ops().solarize(image, int(256 * config.strength)),
    "color": lambda image, config, rng: enhanced(image, "Color", config),
    "contrast": lambda image, config, rng: enhanced(image, "Contrast", config),
    "brightness": lambda image, config, rng: enhanced(image, "Brightness", config),
    "sharpness": lambda image, config, rng: enhanced(image, "Sharpness", config),
    "shear_x": lambda image, config, rng: moved(image, shear_x=signed(0.3 * config.strength, rng)),
    "shear_y": lambda image, config, rng: moved(image, shear_y=signed(0.3 * config.strength, rng)),
    "translate_x": lambda image, config, rng: moved(image, right=_distance(config, rng)),
    "translate_y": lambda image, config, rng: moved(image, down=_distance(config, rng)),
    "cutout": cut_out,
    "solarize_add": solarize_add,
}
"""The sixteen operations of the official code, by name."""


def _distance(config: RandAugment, rng: np.random.Generator) -> float:
    return signed(config.strength * config.translation, rng)
