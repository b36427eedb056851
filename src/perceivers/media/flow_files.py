"""Loading and writing of optical flow as float32 [H, W, 2] in pixels, (right, down), NaN where unknown."""

import struct
from pathlib import Path

import numpy as np

from perceivers.files.durable import whole_file
from perceivers.files.opening import regular_file
from perceivers.media.guarded_pillow import MAX_PIXELS
from perceivers.media.png16 import read_png16, write_png16

MAGIC = 202021.25
"""First number of a Middlebury file."""

_UNKNOWN, _UNKNOWN_FROM = 1e10, 1e9  # Middlebury's value for unknown, and the limit above which values count as unknown


def read_flow(path: Path | str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Load a Middlebury .flo or a KITTI .png of 16 bits as float32 [H, W, 2], NaN where unknown."""
    path = regular_file(path)
    return _read_kitti(path, max_pixels) if _is_kitti(path) else _read_middlebury(path, max_pixels)


def write_flow(path: Path | str, flow: np.ndarray) -> Path:
    """Write [H, W, 2], NaN where unknown: a .flo is exact, a .png has steps of 1/64 pixel from -512 to below 512."""
    path = Path(path)
    write = _write_kitti if _is_kitti(path) else _write_middlebury
    if flow.ndim != 3 or flow.shape[2] != 2 or 0 in flow.shape or not np.issubdtype(flow.dtype, np.floating):
        raise ValueError(f"{path}: flow {flow.dtype} {flow.shape}, expected float (H, W, 2)")
    if np.isinf(flow).any():
        raise ValueError(f"{path}: infinite flow; unknown flow is NaN")
    write(path, flow.astype(np.float32), np.isfinite(flow).all(axis=-1))
    return path


def _is_kitti(path: Path) -> bool:
    """Return whether a file is in KITTI's format, not Middlebury's, by its suffix."""
    if path.suffix.lower() not in (".flo", ".png"):
        raise ValueError(f"{path}: flow is kept in .flo or .png files")
    return path.suffix.lower() == ".png"


def _read_middlebury(path: Path, max_pixels: int) -> np.ndarray:
    with path.open("rb") as file:
        start = file.read(12)
        magic, width, height = struct.unpack("<fii", start) if len(start) == 12 else (0.0, 0, 0)
        if magic != MAGIC:
            raise ValueError(f"{path}: not a .flo file: does not begin with {MAGIC}")
        if width < 1 or height < 1 or width * height > max_pixels:
            raise ValueError(f"{path}: {width} x {height} pixels, expected 1 to {max_pixels:,}")
        size, expected = path.stat().st_size, 12 + 8 * width * height
        if size != expected:
            raise ValueError(f"{path}: {size} bytes, its header of {width} x {height} pixels needs {expected}")
        flow = np.frombuffer(file.read(expected - 12), "<f4").reshape(height, width, 2).astype(np.float32)
    flow[~(np.abs(flow) <= _UNKNOWN_FROM).all(axis=-1)] = np.nan
    return flow


def _write_middlebury(path: Path, flow: np.ndarray, known: np.ndarray) -> None:
    if (np.abs(flow[known]) > _UNKNOWN_FROM).any():
        raise ValueError(f"{path}: flow beyond {_UNKNOWN_FROM:g} pixels, which stands for unknown in a .flo file")
    height, width = known.shape
    values = np.where(known[..., None], flow, np.float32(_UNKNOWN)).astype("<f4")
    with whole_file(path) as fresh:
        fresh.write_bytes(struct.pack("<fii", MAGIC, width, height) + values.tobytes())


def _read_kitti(path: Path, max_pixels: int) -> np.ndarray:
    values = read_png16(path, max_pixels)
    if values.shape[2] != 3:
        raise ValueError(f"{path}: a PNG of {values.shape[2]} channels, expected the 3 of a flow: right, down, valid")
    flow = (values[:, :, :2].astype(np.float32) - 2**15) / 64
    flow[values[:, :, 2] == 0] = np.nan
    return flow


def _write_kitti(path: Path, flow: np.ndarray, known: np.ndarray) -> None:
    values = np.rint(np.where(known[..., None], flow, 0) * 64) + 2**15
    if values.min() < 0 or values.max() >= 2**16:
        raise ValueError(
            f"{path}: flow up to {np.abs(flow[known]).max():g} pixels, a .png holds -512 to just below 512"
        )
    values = np.where(known[..., None], values, 0)  # KITTI's own files are all zeros where unknown
    write_png16(path, np.concatenate([values, known[..., None]], axis=-1).astype(np.uint16))
