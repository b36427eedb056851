"""PNG files of 16 bits, loaded with all their bits by means of Pillow, and written without Pillow.

Pillow decodes three and four channels of 16 bits to 8. `wide_tiles` therefore decodes a file twice, once for the high
bytes and once for the low ones, and yields value = 256 high + low, a tile at a time to save memory.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perceivers.files.durable import whole_file
from perceivers.files.messages import one_line
from perceivers.files.opening import regular_file
from perceivers.media.guarded_pillow import MAX_PIXELS, check_size, most_bytes, opened_picture

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 4: 2, 2: 3, 6: 4}
_PNG_COLOURS = {channels: colour for colour, channels in _PNG_CHANNELS.items()}

# Mode and raw modes with which Pillow decodes all 16 bits, by the number of channels. Pillow supports grey. Grey and
# alpha are decoded as four channels of bytes. Of three and four channels Pillow drops the low bytes (16B) or, if the
# raw mode names the other byte order (16L), the high bytes.
_PNG16_MODES = {
    1: ("I;16", ("I;16B",)),
    2: ("RGBA", ("RGBA",)),
    3: ("RGB", ("RGB;16B", "RGB;16L")),
    4: ("RGBA", ("RGBA;16B", "RGBA;16L")),
}

_MOST_CHUNKS = 1_000_000  # of a PNG; usual chunks of pixels have 8 kB and more
_MOST_ROW_BITS = 2_147_000_000  # of a PNG: Pillow's decoder counts the bits of a row with 32 bits
_TILE = 1 << 16  # number of pixels that are converted at a time


def read_png16(path: Path | str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Load a PNG of 16 bits as uint16 [H, W, channels]: grey, grey and alpha, RGB or RGBA."""
    path = regular_file(path, most_bytes(max_pixels))
    header = png_header(path)
    if header.depth != 16 or header.colour not in _PNG_CHANNELS:
        raise ValueError(
            f"{path}: PNG of {header.depth} bits and colour type {header.colour}, expected 16 bits without palette"
        )
    check_size(path, header.width, header.height, max_pixels)
    shape = (header.height, header.width, _PNG_CHANNELS[header.colour])
    values = np.empty(shape, np.uint16)
    for tile, wide in wide_tiles(path, np.empty(shape, np.uint8)):
        values[tile] = wide
    return values


def write_png16(path: Path | str, values: np.ndarray) -> Path:
    """Write uint16 [H, W, channels], one to four channels, as a PNG (Pillow writes 16 bits of grey only)."""
    path = Path(path)
    if values.ndim != 3 or values.dtype != np.uint16 or values.shape[2] not in _PNG_COLOURS or 0 in values.shape:
        raise ValueError(f"{path}: values {values.dtype} {values.shape}, expected uint16 (H, W, 1 to 4)")
    height, width, channels = values.shape
    # Each row of pixels as the difference from the one above (filter 2), after a byte with the filter's number.
    lines = values.astype(">u2").view(np.uint8).reshape(height, -1)
    above = np.vstack([np.zeros_like(lines[:1]), lines[:-1]])
    filtered = np.hstack([np.full((height, 1), 2, np.uint8), lines - above])
    # The file: a signature, then chunks of length, type, data and checksum.
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOURS[channels], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b""))
    with whole_file(path) as fresh, fresh.open("wb") as file:
        file.write(_PNG_START)
        for kind, data in parts:
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return path


class _PngHeader(NamedTuple):
    """The header of a PNG."""

    width: int
    height: int
    depth: int
    """Bits of a channel."""
    colour: int
    """Colour type: PNG's number for what the channels are."""


def png_header(path: Path) -> _PngHeader:
    """Return the header of a PNG; ValueError for other files and damaged headers."""
    with path.open("rb") as file:
        start = file.read(33)
    if len(start) < 33 or start[:16] != _PNG_START + b"\0\0\0\rIHDR":
        raise ValueError(f"{path}: not a PNG")
    if zlib.crc32(start[12:29]) != int.from_bytes(start[29:], "big"):
        raise ValueError(f"{path}: damaged PNG: checksum of the header")
    return _PngHeader(*struct.unpack(">IIBB", start[16:26]))


def _check_png_data(path: Path, most: int) -> None:
    """Raise a ValueError unless all chunks of a PNG are complete, and chunks of pixels have at most `most` bytes."""
    with path.open("rb") as file:
        file.seek(len(_PNG_START))
        left, kind = most, b""
        for _ in range(_MOST_CHUNKS):
            head = file.read(8)
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            left -= length if kind == b"IDAT" else 0
            if len(head) < 8 or left < 0:
                raise ValueError(f"{path}: damaged PNG: ends early, or has more data than its size needs")
            # The checksum of the chunk, a megabyte at a time.
            checksum = zlib.crc32(kind)
            while length and (piece := file.read(min(length, 1 << 20))):
                checksum, length = zlib.crc32(piece, checksum), length - len(piece)
            if length or file.read(4) != checksum.to_bytes(4, "big"):
                raise ValueError(f"{path}: damaged PNG: checksum of the data, or cut short")
            if kind == b"IEND":
                return
        raise ValueError(f"{path}: damaged PNG: more than {_MOST_CHUNKS:,} chunks")


Tile = tuple[slice, slice]


def wide_tiles(path: Path, high: np.ndarray) -> Iterator[tuple[Tile, np.ndarray]]:
    """Yield the position and the values, uint16 [h, w, channels], of each tile of a PNG of 16 bits.

    `high`, uint8 [H, W, at least channels], is memory for the high bytes. The caller may overwrite the pixels of a
    tile once the tile is yielded.
    """
    header = png_header(path)
    channels = _PNG_CHANNELS[header.colour]
    if header.width * channels * 16 > _MOST_ROW_BITS:
        raise ValueError(f"{path}: rows of {header.width:,} pixels, too many for {channels} channels of 16 bits")
    # Check that the data are not longer than they can be: interlaced pictures have up to twice as many rows, and
    # deflated noise is hardly longer than the noise.
    _check_png_data(path, 2 * header.height * (1 + header.width * channels * 2) + 4096)
    # The high bytes; for one and two channels all bytes.
    mode, (first, *second) = _PNG16_MODES[channels]
    for tile, pixels in _tiles(_raw_pixels(path, mode, first)):
        if second:
            high[tile][..., :channels] = pixels
        else:
            yield tile, pixels[..., None] if channels == 1 else pixels.view(">u2").astype(np.uint16)
    # The low bytes.
    for raw in second:
        for tile, pixels in _tiles(_raw_pixels(path, mode, raw)):
            yield tile, high[tile][..., :channels] * np.uint16(256) + pixels


def _raw_pixels(path: Path, mode: str, raw: str) -> Any:
    """Load a PNG as a Pillow image of mode `mode`, unpacked in raw mode `raw`, whatever its header says."""
    header = png_header(path)
    with opened_picture(path, header.width * header.height) as image:
        image._mode, image.tile = mode, [part._replace(args=raw) for part in image.tile]
        try:
            image.load()
        except Exception as error:  # Pillow's readers raise nearly anything on broken data
            raise ValueError(f"{path}: damaged picture: {one_line(error)}") from None
        return image


def _tiles(image: Any) -> Iterator[tuple[Tile, np.ndarray]]:
    """Yield the tiles of a Pillow image with their positions; the intermediate results of a tile are small."""
    columns = min(image.width, _TILE)
    rows = max(_TILE // columns, 1)
    for top in range(0, image.height, rows):
        for left in range(0, image.width, columns):
            bottom, right = min(top + rows, image.height), min(left + columns, image.width)
            yield (slice(top, bottom), slice(left, right)), np.asarray(image.crop((left, top, right, bottom)))
