"""Resizing of images as in the official code, by weighted sums of K input pixels along each axis; central crops."""

import math
from typing import Literal

import numpy as np

CENTRE = 224 / 256
"""Side of ImageNet's evaluation crop as a fraction of the short side."""


def resize(
    image: np.ndarray, size: tuple[int, int], kind: Literal["bicubic", "bilinear", "area"] = "bicubic"
) -> np.ndarray:
    """Resize [H, W, C] to float32 [*size, C].

    Pixel centres are at halves, overshoot is not clamped, and only "area" has antialiasing.
    """
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"image of shape {image.shape}, expected (H, W, C)")
    if min(size) < 1:
        raise ValueError(f"size {tuple(size)}, expected at least one pixel each way")
    rows = _weighted_rows(image, *_taps(image.shape[0], size[0], kind))
    columns = _weighted_rows(rows.swapaxes(0, 1), *_taps(image.shape[1], size[1], kind))
    return np.ascontiguousarray(columns.swapaxes(0, 1))


def imagenet_crop(image: np.ndarray, size: int = 224) -> np.ndarray:
    """Return the evaluation crop of the official ImageNet models, float32 [size, size, C] from 0 to 255.

    The crop is the central square of 7/8 of the short side. Cubic interpolation overshoots below 0 and above 255, as in
    training (official dataset.py).
    """
    return resize(centre_crop(image, CENTRE), (size, size))


def centre_crop(pixels: np.ndarray, part: float = 1.0, rounding: Literal["up", "down"] = "up") -> np.ndarray:
    """Return the central square of [..., H, W, C]; its side is a fraction `part` of the short side.

    An offset of half a pixel is rounded up for images (official dataset.py), down for video (official notebook).
    """
    height, width = pixels.shape[-3:-1]
    side = int(min(height, width) * part)
    if side < 1:
        raise ValueError(f"image of {height} x {width} pixels, expected at least 2 x 2")
    added = 1 if rounding == "up" else 0
    top, left = (height - side + added) // 2, (width - side + added) // 2
    return pixels[..., top : top + side, left : left + side, :]


def _taps(length: int, new_length: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return K input pixels [new_length, K] and their weights [new_length, K] for each output pixel along an axis.

    Centres are float32 and the cubic has 1,024 steps, as in TensorFlow's resize_bicubic_op.cc.
    """
    weights: np.ndarray
    # "area": the overlap of an output pixel with each input pixel.
    if kind == "area":
        scale = length / new_length
        starts = np.arange(new_length)[:, None] * scale
        pixels = np.floor(starts).astype(np.int64) + np.arange(math.ceil(scale) + 1)
        weights = (np.minimum(starts + scale, pixels + 1) - np.maximum(starts, pixels)).clip(0)
    # Others: interpolation between the input pixels around the output pixel's centre.
    else:
        half = np.float32(0.5)
        scale_32 = np.float32(length) / np.float32(new_length)
        centres = (np.arange(new_length, dtype=np.float32) + half) * scale_32 - half
        first = np.floor(centres)
        offset = centres - first
        if kind == "bicubic":
            pixels = first.astype(np.int64)[:, None] + np.arange(-1, 3)
            weights = _keys(np.rint(offset * 1024) / 1024)
        elif kind == "bilinear":
            pixels = first.astype(np.int64)[:, None] + np.arange(2)
            weights = np.stack([1 - offset, offset], axis=1)
        else:
            raise ValueError(f"kind {kind!r}, expected 'bicubic', 'bilinear' or 'area'")
    # Pixels outside the image have no weight.
    weights = np.where((pixels >= 0) & (pixels < length), weights, 0)
    return pixels.clip(0, length - 1), (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _keys(offset: np.ndarray) -> np.ndarray:
    """Return the weights [n, 4] of Keys' cubic (a = -0.5) at the pixels -1 to 2, for offsets [n] from pixel 0."""
    a = -0.5
    distance = np.abs(offset[:, None] - np.arange(-1, 3))
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, far)


def _weighted_rows(image: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return float32 [n, W, C]: row i is the weighted sum of the rows `rows[i]` of an image [H, W, C]."""
    total = np.zeros((len(rows), *image.shape[1:]), np.float32)
    for row, weight in zip(rows.T, weights.T, strict=True):
        total += weight[:, None, None] * image[row].astype(np.float32)
    return total
