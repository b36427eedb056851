"""Optical flow: files to float32 [H, W, 2] in pixels, (right, down), NaN where unknown, and back; its colours."""

import struct
from pathlib import Path

import numpy as np

from perceivers.media.image import MAX_PIXELS, read_png16, regular_file, whole_file, write_png16

MAGIC = 202021.25
"""First number of a Middlebury file."""

_UNKNOWN = 1e10  # as Middlebury writes it; its readers take all beyond 1e9 for unknown


def read_flow(path: Path | str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """float32 [H, W, 2] of a Middlebury .flo or a KITTI .png of 16 bits, NaN where unknown."""
    path = regular_file(path)
    return _by_suffix(path, {".flo": _read_flo, ".png": _read_kitti})(path, max_pixels)


def write_flow(path: Path | str, flow: np.ndarray) -> Path:
    """Write [H, W, 2], NaN where unknown: .flo as it is, .png in steps of 1/64 pixel from -512 to just below 512."""
    path = Path(path)
    write = _by_suffix(path, {".flo": _write_flo, ".png": _write_kitti})
    if flow.ndim != 3 or flow.shape[2] != 2 or 0 in flow.shape or not np.issubdtype(flow.dtype, np.floating):
        raise ValueError(f"{path}: flow {flow.dtype} {flow.shape}, expected float (H, W, 2)")
    if np.isinf(flow).any():
        raise ValueError(f"{path}: infinite flow; unknown flow is NaN")
    write(path, flow.astype(np.float32))
    return path


def flow_colours(flow: np.ndarray, full: float | None = None) -> np.ndarray:
    """float32 [H, W, 3] from 0 to 1 of [H, W, 2]: hue is direction, red right, then yellow, green: down, blue: up.

    Saturation is distance over `full` pixels (None: the largest known); white where there is no motion, or none known.
    """
    known = np.isfinite(flow).all(axis=-1)
    right, down = np.moveaxis(np.where(known[..., None], flow, 0).astype(np.float32), -1, 0)
    distance = np.hypot(right, down)
    hue = np.arctan2(down, right) / (2 * np.pi) % 1
    saturation = np.clip(distance / max(full or float(distance.max(initial=0)), 1e-6), 0, 1)
    # Of HSV at full value, each of red, green and blue is one for a third of the circle, with ramps of a sixth beside.
    pure = np.clip(np.abs((hue[..., None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return (1 - saturation[..., None] * (1 - pure)).astype(np.float32)


def colour_wheel(size: int = 128) -> np.ndarray:
    """float32 [size, size, 3]: the legend of `flow_colours`, each pixel in the colour of motion from the centre to it."""
    place = (np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1
    flow = np.stack(np.meshgrid(place, place), axis=-1)
    flow[np.hypot(flow[..., 0], flow[..., 1]) > 1] = np.nan
    return flow_colours(flow, full=1.0)


def _by_suffix[Kind](path: Path, kinds: dict[str, Kind]) -> Kind:
    """The entry of a file's suffix."""
    if path.suffix.lower() not in kinds:
        raise ValueError(f"{path}: flow is kept in {' or '.join(kinds)} files")
    return kinds[path.suffix.lower()]
