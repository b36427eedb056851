"""Loading of image files as uint8 [H, W, 3], and writing of image files."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from perceivers.files.durable import whole_file
from perceivers.files.messages import one_line
from perceivers.files.opening import regular_file
from perceivers.media.extra import library
from perceivers.media.guarded_pillow import MAX_PIXELS, check_exif, exif_of, most_bytes, opened_picture
from perceivers.media.png16 import png_header, wide_tiles

_WRITTEN = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
_SETTINGS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}

SWAPPED = (5, 6, 7, 8)
"""EXIF orientations in which rows and columns are swapped."""

_BAND = 1 << 17  # number of pixels of 8 bits that are converted at a time


def read_image(path: Path | str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Load an image as uint8 [H, W, 3]; if the file holds several, the first.

    The image is turned upright as its EXIF says, transparency is blended over white, and 16 bits are scaled to 8.
    """
    path = regular_file(path, most_bytes(max_pixels))
    with opened_picture(path, max_pixels) as image:
        wide = image.format == "PNG" and png_header(path).depth == 16
        pixels = _narrowed(path, image) if wide else _decoded(path, image, exclusive=True)
        orientation = _orientation(path, image)
    del image  # free its memory: turning may copy the pixels
    return _upright(pixels, orientation)


def picture_pixels(picture: Any) -> np.ndarray:
    """Return the pixels of a picture of Pillow as uint8 [H, W, 3], the same as `read_image` of its file."""
    if picture.mode in ("I", "F"):
        raise ValueError(f"a picture of mode {picture.mode}, whose range is not known: give an array [H, W, C]")
    if picture.mode.startswith("I;16"):
        pixels = _eight_bits(np.asarray(picture)[..., None])
    else:
        pixels = _decoded(Path("picture"), picture)
    return _upright(pixels, _orientation(Path("picture"), picture))


def image_size(path: Path | str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return height and width of an image as `read_image` loads it, from its header."""
    path = regular_file(path)
    with opened_picture(path, max_pixels) as image:
        return (image.width, image.height) if _orientation(path, image) in SWAPPED else (image.height, image.width)


def write_image(path: Path | str, pixels: np.ndarray) -> Path:
    """Write [H, W, 3], [H, W, 1] or [H, W], uint8 or float from 0 to 1, as the suffix says (WebP without loss)."""
    path = Path(path)
    kind = _WRITTEN.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: pictures are written as {', '.join(_WRITTEN)}")
    pixels = _as_bytes(path, np.asarray(pixels))
    pillow = library("PIL.Image")
    with whole_file(path) as fresh:
        try:
            pillow.fromarray(pixels).save(fresh, format=kind, **_SETTINGS.get(kind, {}))
        except ValueError as error:  # for example of a WebP, which has at most 16,383 pixels each way
            raise ValueError(f"{path}: cannot be written: {one_line(error)}") from None
    return path


def _decoded(path: Path, image: Any, exclusive: bool = False) -> np.ndarray:
    """Decode a Pillow image to uint8 [H, W, 3], in bands of rows, since each step of the conversion makes a copy.

    `exclusive`: the image is used nowhere else, so its pixels may be taken from it.
    """
    pillow = library("PIL.Image")
    try:
        if exclusive and image.format == "WEBP":
            image = _webp(image)
        image.load()
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        rows = max(_BAND // image.width, 1)
        for top in range(0, image.height, rows):
            band = image.crop((0, top, image.width, min(top + rows, image.height)))
            if image.has_transparency_data:
                band = band.convert("RGBA")
                band = pillow.alpha_composite(pillow.new("RGBA", band.size, "white"), band)
            pixels[top : top + rows] = np.asarray(band.convert("RGB"))
        return pixels
    except Exception as error:  # Pillow's readers raise nearly anything on broken data
        raise ValueError(f"{path}: damaged picture: {one_line(error)}") from None


def _webp(image: Any) -> Any:
    """Return a WebP's image without Pillow's copies of the pixels: one in its image, two in its decoder."""
    content, _, _ = image._get_next()
    image._decoder = None
    return library("PIL.Image").frombuffer(image.rawmode, image.size, content, "raw", image.rawmode, 0, 1)


def _eight_bits(values: np.ndarray, transparent: Any = None) -> np.ndarray:
    """Convert [H, W, 1 to 4] of 16 bits to uint8 [H, W, 3] over white; the last of two or four channels is alpha."""
    channels = values.shape[2]
    colours: np.ndarray = values[:, :, : channels - 1 + channels % 2].astype(np.float32)
    if channels % 2 == 0:
        colours = 65535 - (65535 - colours) * (values[:, :, -1:] / np.float32(65535))
    if isinstance(transparent, int | tuple):  # one colour stands for transparent
        colours[(values == np.array(transparent)).all(axis=-1)] = 65535
    return np.broadcast_to(np.rint(colours / 257).astype(np.uint8), (*values.shape[:2], 3)).copy()


def _orientation(path: Path, image: Any) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none, or if it is damaged."""
    with suppress(Exception):  # the pixels are good even if the tags are damaged
        if image.format == "PNG" and "exif" not in image.info:
            image.load()  # the EXIF of a PNG may come after the pixels
    try:
        check_exif(exif_of(image))
    except ValueError as error:
        raise ValueError(f"{path}: damaged picture: {error}") from None
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # damaged tags
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image upright: undo the swap of rows and columns, then the flips of its EXIF orientation."""
    pixels = pixels.swapaxes(0, 1) if orientation in SWAPPED else pixels
    pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
    pixels = pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
    return np.ascontiguousarray(pixels)


def _as_bytes(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Return pixels to write as uint8 [H, W, 3] or [H, W]; ValueError for other shapes and values."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)) or 0 in pixels.shape:
        raise ValueError(f"{path}: pixels of shape {pixels.shape}, expected (H, W, 3), (H, W, 1) or (H, W)")
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(f"{path}: pixels are {pixels.dtype}, expected uint8, or float from 0 to 1")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"{path}: pixels from {low:g} to {high:g}, expected uint8, or float from 0 to 1")
    return np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)


def _narrowed(path: Path, image: Any) -> np.ndarray:
    """Load a PNG of 16 bits as uint8 [H, W, 3], rounded; Pillow would drop the low bytes of three channels."""
    pixels = np.empty((image.height, image.width, 4 if png_header(path).colour == 6 else 3), np.uint8)
    for tile, wide in wide_tiles(path, pixels):
        pixels[tile][..., :3] = _eight_bits(wide, image.info.get("transparency"))
    return pixels[..., :3]
