"""Pictures: files to uint8 [H, W, 3] and back; sizes and the crop of evaluation."""

import io
import math
import mmap
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from perceivers.files import MOST_TEXT_BYTES, one_line, regular_file, whole_file

# Never all that Pillow knows: EPS runs Ghostscript, FITS, PDF and JPEG 2000 have been bombs, libtiff prints on stderr.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""Kinds of files that `read_image` reads, told by their content, not by their name."""

MAX_PIXELS = 50_000_000
"""Height times width that readers accept unless told otherwise."""

CENTRE = 224 / 256
"""Part of the short side that ImageNet's evaluation looks at."""

_WRITTEN = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
_SETTINGS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}

SWAPPED = (5, 6, 7, 8)
"""EXIF orientations in which rows and columns are swapped."""

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 4: 2, 2: 3, 6: 4}
_PNG_COLOURS = {channels: colour for colour, channels in _PNG_CHANNELS.items()}
# How Pillow decodes all 16 bits: a mode and raw modes. Grey it does; grey and alpha are four channels of bytes to it;
# of three and four channels it drops the low bytes (16B) or, told that the order of bytes is the other, the high ones.
_PNG16_MODES = {
    1: ("I;16", ("I;16B",)),
    2: ("RGBA", ("RGBA",)),
    3: ("RGB", ("RGB;16B", "RGB;16L")),
    4: ("RGBA", ("RGBA;16B", "RGBA;16L")),
}

_MOST_CHUNKS = 1_000_000  # of a PNG; writers make one of at least 8 kB of pixels
_MOST_ROW_BITS = 2_147_000_000  # of Pillow's decoder of PNGs, which counts them with 32 bits
_BAND = 1 << 20  # pixels of 8 bits that are converted at a time
_TILE = 1 << 16  # pixels of 16 bits that are converted at a time
_MOST_SCANNED = 100 * MAX_PIXELS  # pixels of all scans of a JPEG together; progressive ones have about ten scans
_MOST_SEGMENTS = 50_000  # of a JPEG; a colour profile and its scans are some hundred
_MOST_COPIED = 1 << 35  # bytes before each piece of a header, added up; of 10 MB of segments of a JPEG half of it
_EXIF, _MOST_EXIF = b"Exif\0\0", 1 << 20  # how Exif begins in a JPEG; bytes of overlapping entries
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")  # with a length behind it, but for the end of a picture
_LONGEST_RUN_LENGTHS = 2048  # side of a BMP of run lengths in pixels: Pillow unpacks it a pixel at a time, in Python


def library(name: str) -> Any:
    """A module of the extra `media`; ImportError that says how to get it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} cannot be imported ({error}): pip install perceivers[media]") from None


class TooManyPixelsError(ValueError):
    """A picture has more pixels than are accepted, or none."""


def read_image(path: Path | str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """uint8 [H, W, 3], upright as its EXIF says, transparency over white, 16 bits scaled; the first of several."""
    path = regular_file(path, _most_bytes(max_pixels))
    with _opened(path, max_pixels) as image:
        wide = image.format == "PNG" and _png_header(path).depth == 16
        pixels = _narrowed(path, image) if wide else _decoded(path, image, own=True)
        orientation = _orientation(path, image)
    del image  # as large as the pixels, which may have to be copied
    return _upright(pixels, orientation)


def picture_pixels(picture: Any) -> np.ndarray:
    """Return uint8 [H, W, 3] of a picture of Pillow, as `read_image` gives of its file."""
    if picture.mode in ("I", "F"):
        raise ValueError(f"a picture of mode {picture.mode}, whose range is not known: give an array [H, W, C]")
    if picture.mode.startswith("I;16"):
        pixels = _eight_bits(np.asarray(picture)[..., None])
    else:
        pixels = _decoded(Path("picture"), picture)
    return _upright(pixels, _orientation(Path("picture"), picture))


def image_size(path: Path | str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of a picture as `read_image` gives it; only its header is read."""
    path = regular_file(path)
    with _opened(path, max_pixels) as image:
        return (image.width, image.height) if _orientation(path, image) in SWAPPED else (image.height, image.width)


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Any]:
    """A Pillow image whose header says what is read here."""
    pillow = library("PIL.Image")
    scans = _scans(path)
    with warnings.catch_warnings(), _Opening(path) as file:
        warnings.simplefilter("ignore")  # Pillow warns of odd tags; a picture is read or refused
        try:
            image = pillow.open(file, formats=FORMATS)
        except pillow.UnidentifiedImageError:
            raise ValueError(f"{path}: not a picture that is read here ({', '.join(FORMATS)})") from None
        except pillow.DecompressionBombError:
            raise TooManyPixelsError(f"{path}: over {max_pixels:,} pixels") from None
        except Exception as error:  # a broken header raises nearly anything
            raise ValueError(f"{path}: damaged picture: {one_line(error)}") from None
        file.left = None
        with image:
            _check_size(path, image.width, image.height, max_pixels)
            _check_work(path, image, scans)
            yield image


class _Opening(io.BufferedReader):
    """A file as Pillow opens it, which appends each comment and each part of Exif to those before it, in a copy.

    ValueError if that may copy more than `_MOST_COPIED` bytes.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.left: int | None = _MOST_COPIED
        self.seen, self.exif = 0, b""

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes."""
        data = super().read(size)
        if self.left is not None:
            self.seen += len(data)
            self.left -= self.seen
            if self.left < 0:
                raise ValueError("its header is in very many pieces")
            if data.startswith(_EXIF):  # of a JPEG Pillow takes it apart at once
                self.exif += data.removeprefix(_EXIF)
                _check_exif(self.exif)
        return data


def _exif(image: Any) -> bytes:
    """Exif of a Pillow image, from where Pillow's `getexif` takes it; empty if there is none."""
    if (exif := image.info.get("exif")) is not None:
        return bytes(exif).removeprefix(_EXIF)
    try:
        return bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:])).removeprefix(_EXIF)
    except (KeyError, AttributeError, ValueError):
        return b""


def _check_exif(exif: bytes) -> None:
    """ValueError if entries hold far more bytes together than there are: Pillow copies those of each."""
    order = "<" if exif[:2] == b"II" else ">"
    with suppress(struct.error):  # an end within an entry
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        left = _MOST_EXIF + 4 * len(exif)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            _, _, items, offset = struct.unpack_from(f"{order}HHII", exif, place)
            left -= max(min(8 * items, len(exif) - offset), 0)
            if left < 0:
                raise ValueError("Exif of entries that overlap")


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
        except ValueError as error:  # as of a WebP, which has at most 16,383 pixels each way
            raise ValueError(f"{path}: cannot be written: {one_line(error)}") from None
    return path


def resize(
    image: np.ndarray, size: tuple[int, int], kind: Literal["bicubic", "bilinear", "area"] = "bicubic"
) -> np.ndarray:
    """[H, W, C] to float32 [*size, C]: half-pixel centres, no antialiasing (but "area"), overshoot not clamped."""
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"image of shape {image.shape}, expected (H, W, C)")
    if min(size) < 1:
        raise ValueError(f"size {tuple(size)}, expected at least one pixel each way")
    rows = _weighted_rows(image, *_taps(image.shape[0], size[0], kind))
    columns = _weighted_rows(rows.swapaxes(0, 1), *_taps(image.shape[1], size[1], kind))
    return np.ascontiguousarray(columns.swapaxes(0, 1))


def imagenet_crop(image: np.ndarray, size: int = 224) -> np.ndarray:
    """Evaluation crop of the official ImageNet models: central 7/8 of the short side, float32 [size, size, C] 0..255.

    The cubic overshoots below 0 and above 255, as in training (official dataset.py).
    """
    return resize(centre_crop(image, CENTRE), (size, size))


def centre_crop(image: np.ndarray, part: float) -> np.ndarray:
    """The central square of [H, W, C], its side this part of the short side; the offset rounds up (official code)."""
    height, width = image.shape[:2]
    side = int(min(height, width) * part)
    if side < 1:
        raise ValueError(f"image of {height} x {width} pixels, expected at least 2 x 2")
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    return image[top : top + side, left : left + side]


def read_png16(path: Path | str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """uint16 [H, W, channels] of a PNG of 16 bits: grey, grey and alpha, RGB or RGBA."""
    path = regular_file(path, _most_bytes(max_pixels))
    header = _png_header(path)
    if header.depth != 16 or header.colour not in _PNG_CHANNELS:
        raise ValueError(
            f"{path}: PNG of {header.depth} bits and colour type {header.colour}, expected 16 bits without palette"
        )
    _check_size(path, header.width, header.height, max_pixels)
    shape = (header.height, header.width, _PNG_CHANNELS[header.colour])
    values = np.empty(shape, np.uint16)
    for tile, wide in _wide_tiles(path, np.empty(shape, np.uint8)):
        values[tile] = wide
    return values


def write_png16(path: Path | str, values: np.ndarray) -> Path:
    """Write uint16 [H, W, channels], one to four channels, as a PNG (Pillow writes 16 bits of grey alone)."""
    path = Path(path)
    if values.ndim != 3 or values.dtype != np.uint16 or values.shape[2] not in _PNG_COLOURS or 0 in values.shape:
        raise ValueError(f"{path}: values {values.dtype} {values.shape}, expected uint16 (H, W, 1 to 4)")
    height, width, channels = values.shape
    lines = values.astype(">u2").view(np.uint8).reshape(height, -1)
    above = np.vstack([np.zeros_like(lines[:1]), lines[:-1]])
    filtered = np.hstack([np.full((height, 1), 2, np.uint8), lines - above])  # filter 2: difference from above
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOURS[channels], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b""))
    with whole_file(path) as fresh, fresh.open("wb") as file:
        file.write(_PNG_START)
        for kind, data in parts:
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return path


def _most_bytes(max_pixels: int) -> int:
    """Bytes of a file of so many pixels: four channels of 16 bits, and as much again for what else is in it."""
    return 16 * max_pixels + MOST_TEXT_BYTES


def _check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    if not 0 < width * height <= max_pixels:
        raise TooManyPixelsError(f"{path}: {width} x {height} pixels, expected 1 to {max_pixels:,}")


def _check_work(path: Path, image: Any, scans: int) -> None:
    """ValueError for a picture that takes far more time than its pixels are worth."""
    if scans * image.width * image.height > _MOST_SCANNED:
        raise ValueError(f"{path}: {image.width} x {image.height} pixels in {scans} scans, expected a few")
    run_lengths = any(part.codec_name == "bmp_rle" for part in image.tile)
    if run_lengths and max(image.size) > _LONGEST_RUN_LENGTHS:
        raise ValueError(
            f"{path}: a BMP of run lengths of {image.width} x {image.height} pixels, "
            f"expected at most {_LONGEST_RUN_LENGTHS:,} each way: save it as PNG"
        )


def _scans(path: Path) -> int:
    """Return the number of scans of the first picture of a JPEG, 0 for other files; each scan covers all pixels.

    ValueError for very many segments, of which Pillow makes a list. Only markers at which a segment begins count:
    thumbnails lie within segments, and further pictures or a film may follow the first.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found, first = 0, 2
        if content[:2] != b"\xff\xd8":
            return 0
        for _ in range(_MOST_SEGMENTS):
            marker = _JPEG_MARKER.search(content, first)
            if not marker or marker[0] == b"\xff\xd9":
                return found
            found += marker[0] == b"\xff\xda"
            first = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    raise ValueError(f"{path}: damaged picture: a JPEG of more than {_MOST_SEGMENTS:,} segments")


def _decoded(path: Path, image: Any, own: bool = False) -> np.ndarray:
    """uint8 [H, W, 3] of a Pillow image; in bands, as Pillow makes an image of each step.

    `own`: nobody else uses the image, whose pixels may be taken out of it.
    """
    pillow = library("PIL.Image")
    try:
        if own and image.format == "WEBP":
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
    """A Pillow image with the pixels of a WebP; Pillow's own would be a copy, beside its decoder with two more."""
    content, _, _ = image._get_next()
    image._decoder = None
    return library("PIL.Image").frombuffer(image.rawmode, image.size, content, "raw", image.rawmode, 0, 1)


def _eight_bits(values: np.ndarray, transparent: Any = None) -> np.ndarray:
    """[H, W, 1 to 4] of 16 bits, an even number of channels ending in alpha, to uint8 [H, W, 3] over white."""
    channels = values.shape[2]
    colours: np.ndarray = values[:, :, : channels - 1 + channels % 2].astype(np.float32)
    if channels % 2 == 0:
        colours = 65535 - (65535 - colours) * (values[:, :, -1:] / np.float32(65535))
    if isinstance(transparent, int | tuple):  # one colour that stands for nothing
        colours[(values == np.array(transparent)).all(axis=-1)] = 65535
    return np.broadcast_to(np.rint(colours / 257).astype(np.uint8), (*values.shape[:2], 3)).copy()


def _orientation(path: Path, image: Any) -> int:
    """EXIF orientation 1 to 8, 1 where there is none that can be read."""
    with suppress(Exception):  # the picture is sound even where its tags are not
        if image.format == "PNG" and "exif" not in image.info:
            image.load()  # it may stand behind the pixels
    try:
        _check_exif(_exif(image))
    except ValueError as error:
        raise ValueError(f"{path}: damaged picture: {error}") from None
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # as above
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo EXIF orientation: from 5 on rows and columns are swapped; then flips."""
    pixels = pixels.swapaxes(0, 1) if orientation in SWAPPED else pixels
    pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
    pixels = pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
    return np.ascontiguousarray(pixels)


def _as_bytes(path: Path, pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] or [H, W] of pixels to write; ValueError for other shapes and values."""
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


def _taps(length: int, wanted: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Input places [wanted, K] and their weights [wanted, K] for each output pixel; none outside the image.

    Centres in float32 and 1,024 steps of the cubic, as TensorFlow's resize_bicubic_op.cc has them.
    """
    weights: np.ndarray
    if kind == "area":
        scale = length / wanted
        starts = np.arange(wanted)[:, None] * scale
        places = np.floor(starts).astype(np.int64) + np.arange(math.ceil(scale) + 1)
        weights = (np.minimum(starts + scale, places + 1) - np.maximum(starts, places)).clip(0)
    else:
        half = np.float32(0.5)
        centres = (np.arange(wanted, dtype=np.float32) + half) * (np.float32(length) / np.float32(wanted)) - half
        first = np.floor(centres)
        offset = centres - first
        if kind == "bicubic":
            places = first.astype(np.int64)[:, None] + np.arange(-1, 3)
            weights = _keys(np.rint(offset * 1024) / 1024)
        elif kind == "bilinear":
            places = first.astype(np.int64)[:, None] + np.arange(2)
            weights = np.stack([1 - offset, offset], axis=1)
        else:
            raise ValueError(f"kind {kind!r}, expected 'bicubic', 'bilinear' or 'area'")
    weights = np.where((places >= 0) & (places < length), weights, 0)
    return places.clip(0, length - 1), (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _keys(offset: np.ndarray) -> np.ndarray:
    """Weights [n, 4] of Keys' cubic with a = -0.5 at the pixels from -1 to 2, for offsets [n] from pixel 0."""
    a = -0.5
    distance = np.abs(offset[:, None] - np.arange(-1, 3))
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, far)


def _weighted_rows(image: np.ndarray, places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float32 [n, W, C]: row i is the sum of rows `places[i]` of [H, W, C], weighted."""
    total = np.zeros((len(places), *image.shape[1:]), np.float32)
    for place, weight in zip(places.T, weights.T, strict=True):
        total += weight[:, None, None] * image[place].astype(np.float32)
    return total


class _PngHeader(NamedTuple):
    width: int
    height: int
    depth: int
    """Bits of a channel."""
    colour: int
    """PNG's number of what the channels are."""


def _png_header(path: Path) -> _PngHeader:
    with path.open("rb") as file:
        start = file.read(33)
    if len(start) < 33 or start[:16] != _PNG_START + b"\0\0\0\rIHDR":
        raise ValueError(f"{path}: not a PNG")
    if zlib.crc32(start[12:29]) != int.from_bytes(start[29:], "big"):
        raise ValueError(f"{path}: damaged PNG: checksum of the header")
    return _PngHeader(*struct.unpack(">IIBB", start[16:26]))


def _check_png_data(path: Path, most: int) -> None:
    """ValueError unless all chunks of a PNG are whole, and those of pixels have at most `most` bytes together."""
    with path.open("rb") as file:
        file.seek(len(_PNG_START))
        left, kind = most, b""
        for _ in range(_MOST_CHUNKS):
            head = file.read(8)
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            left -= length if kind == b"IDAT" else 0
            if len(head) < 8 or left < 0:
                raise ValueError(f"{path}: damaged PNG: ends early or lies about its length")
            checksum = zlib.crc32(kind)
            while length and (piece := file.read(min(length, 1 << 20))):
                checksum, length = zlib.crc32(piece, checksum), length - len(piece)
            if length or file.read(4) != checksum.to_bytes(4, "big"):
                raise ValueError(f"{path}: damaged PNG: checksum of the data, or cut short")
            if kind == b"IEND":
                return
        raise ValueError(f"{path}: damaged PNG: more than {_MOST_CHUNKS:,} chunks")


Tile = tuple[slice, slice]


def _wide_tiles(path: Path, high: np.ndarray) -> Iterator[tuple[Tile, np.ndarray]]:
    """Parts of a PNG of 16 bits, uint16 [h, w, channels], and where they are.

    `high`, uint8 [H, W, at least channels], is used in between: its pixels are the caller's once their tile is given.
    """
    header = _png_header(path)
    channels = _PNG_CHANNELS[header.colour]
    if header.width * channels * 16 > _MOST_ROW_BITS:
        raise ValueError(f"{path}: rows of {header.width:,} pixels, too many for {channels} channels of 16 bits")
    # Interlaced pictures have up to twice as many lines; deflated noise is hardly longer than it was.
    _check_png_data(path, 2 * header.height * (1 + header.width * channels * 2) + 4096)
    mode, (first, *second) = _PNG16_MODES[channels]
    for tile, pixels in _tiles(_raw_pixels(path, mode, first)):
        if second:
            high[tile][..., :channels] = pixels
        else:
            yield tile, pixels[..., None] if channels == 1 else pixels.view(">u2").astype(np.uint16)
    for raw in second:
        for tile, pixels in _tiles(_raw_pixels(path, mode, raw)):
            yield tile, high[tile][..., :channels] * np.uint16(256) + pixels


def _raw_pixels(path: Path, mode: str, raw: str) -> Any:
    """A Pillow image of a PNG, whatever its header says of its channels: those of `mode`, cut out as `raw` says."""
    header = _png_header(path)
    with _opened(path, header.width * header.height) as image:
        image._mode, image.tile = mode, [part._replace(args=raw) for part in image.tile]
        try:
            image.load()
        except Exception as error:  # Pillow's readers raise nearly anything on broken data
            raise ValueError(f"{path}: damaged picture: {one_line(error)}") from None
        return image


def _tiles(image: Any) -> Iterator[tuple[Tile, np.ndarray]]:
    """A Pillow image in parts, so that what is computed of a part is small."""
    columns = min(image.width, _TILE)
    rows = max(_TILE // columns, 1)
    for top in range(0, image.height, rows):
        for left in range(0, image.width, columns):
            bottom, right = min(top + rows, image.height), min(left + columns, image.width)
            yield (slice(top, bottom), slice(left, right)), np.asarray(image.crop((left, top, right, bottom)))


def _narrowed(path: Path, image: Any) -> np.ndarray:
    """uint8 [H, W, 3] of a PNG of 16 bits; Pillow alone would drop the low bytes of three channels."""
    pixels = np.empty((image.height, image.width, 4 if _png_header(path).colour == 6 else 3), np.uint8)
    for tile, wide in _wide_tiles(path, pixels):
        pixels[tile][..., :3] = _eight_bits(wide, image.info.get("transparency"))
    return pixels[..., :3]
