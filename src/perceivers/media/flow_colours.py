"""Colours of optical flow: hue is direction, saturation is distance."""

import math

import numpy as np


def flow_colours(flow: np.ndarray, full: float | None = None) -> np.ndarray:
    """Return colours, float32 [H, W, 3] from 0 to 1, of a flow [H, W, 2] in pixels.

    Hue is direction: red is right; yellow and green are downwards; blue is upwards. Saturation is the distance as a
    fraction of `full` pixels (None: of the largest distance). Pixels without motion, or unknown, are white.
    """
    check_full(full)
    known = np.isfinite(flow).all(axis=-1)
    right, down = np.moveaxis(np.where(known[..., None], flow, 0).astype(np.float32), -1, 0)
    distance = np.hypot(right, down)
    hue = np.arctan2(down, right) / (2 * np.pi) % 1
    saturation = np.clip(distance / max(full or float(distance.max(initial=0)), 1e-6), 0, 1)
    # HSV at full value: red, green and blue are each 1 for a third of the circle, with a ramp of a sixth on each side.
    pure = np.clip(np.abs((hue[..., None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return (1 - saturation[..., None] * (1 - pure)).astype(np.float32)


def check_full(full: float | None) -> None:
    """Raise a ValueError unless `full`, the distance of full saturation in pixels, is finite and above 0, or None."""
    if full is not None and not 0 < full < math.inf:
        raise ValueError(f"full = {full} must be a number of pixels above 0")


def colour_wheel(size: int = 128) -> np.ndarray:
    """Return the legend of `flow_colours`, float32 [size, size, 3]: a pixel shows motion from the centre to it."""
    coordinate = (np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1
    flow = np.stack(np.meshgrid(coordinate, coordinate), axis=-1)
    flow[np.hypot(flow[..., 0], flow[..., 1]) > 1] = np.nan
    return flow_colours(flow, full=1.0)
