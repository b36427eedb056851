"""Pictures opened with Pillow, after checks of their format, their size and the work that decoding them takes."""

import io
import mmap
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from perceivers.files.messages import one_line
from perceivers.files.opening import MOST_TEXT_BYTES
from perceivers.media.extra import library

# Pillow has more, with risks: EPS runs Ghostscript; FITS, PDF and JPEG 2000 have been bombs; libtiff prints on stderr.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""Formats that `read_image` supports, detected by content, not by name."""

MAX_PIXELS = 50_000_000
"""Default limit of height times width when a picture is loaded."""

_MOST_SCANNED = 100 * MAX_PIXELS  # pixels of all scans of a JPEG together; progressive ones have about ten scans
_MOST_SEGMENTS = 50_000  # of a JPEG; a colour profile and the scans make about a hundred
_MOST_COPIED = 1 << 35  # bytes in front of each read of a header, summed; 10 MB of JPEG segments reach half of this
_EXIF, _MOST_EXIF = b"Exif\0\0", 1 << 20  # start of Exif in a JPEG; bytes of overlapping entries
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")  # a length follows, except after the end of a picture
_LONGEST_RUN_LENGTHS = 2048  # largest side of a run-length BMP: Pillow unpacks it pixel by pixel, in Python


class TooManyPixelsError(ValueError):
    """Error for a picture with no pixels, or more than the limit."""


@contextmanager
def opened_picture(path: Path, max_pixels: int) -> Iterator[Any]:
    """Open a context with a Pillow image whose header is checked; its pixels are not decoded yet."""
    pillow = library("PIL.Image")
    scans = _scans(path)
    with warnings.catch_warnings(), _Opening(path) as file:
        # Open the header.
        warnings.simplefilter("ignore")  # Pillow warns of odd tags
        try:
            image = pillow.open(file, formats=FORMATS)
        except pillow.UnidentifiedImageError:
            raise ValueError(f"{path}: not a picture of a supported format ({', '.join(FORMATS)})") from None
        except pillow.DecompressionBombError:
            raise TooManyPixelsError(f"{path}: over {max_pixels:,} pixels") from None
        except Exception as error:  # a broken header raises nearly anything
            raise ValueError(f"{path}: damaged picture: {one_line(error)}") from None
        # Check the header; from here on reads are not counted.
        file.left = None
        with image:
            check_size(path, image.width, image.height, max_pixels)
            _check_work(path, image, scans)
            yield image


class _Opening(io.BufferedReader):
    """A file that limits Pillow's work on a header of many pieces.

    Pillow appends each comment and each part of Exif to the earlier ones, in a copy. A read raises a ValueError if the
    copies may have more than `_MOST_COPIED` bytes.
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
            if data.startswith(_EXIF):  # Pillow parses the Exif of a JPEG at once
                self.exif += data.removeprefix(_EXIF)
                check_exif(self.exif)
        return data


def exif_of(image: Any) -> bytes:
    """Return the Exif bytes of a Pillow image, from where Pillow's `getexif` takes them; empty if there are none."""
    if (exif := image.info.get("exif")) is not None:
        return bytes(exif).removeprefix(_EXIF)
    try:
        return bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:])).removeprefix(_EXIF)
    except (KeyError, AttributeError, ValueError):
        return b""


def check_exif(exif: bytes) -> None:
    """Raise a ValueError if entries overlap so much that Pillow's copies of them are far larger than the Exif."""
    order = "<" if exif[:2] == b"II" else ">"
    with suppress(struct.error):  # the last entry may be cut short
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        left = _MOST_EXIF + 4 * len(exif)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            _, _, items, offset = struct.unpack_from(f"{order}HHII", exif, entry)
            left -= max(min(8 * items, len(exif) - offset), 0)
            if left < 0:
                raise ValueError("Exif of entries that overlap")


def most_bytes(max_pixels: int) -> int:
    """Return the largest size of a file in bytes: twice `max_pixels` of four 16-bit channels, and some metadata."""
    return 16 * max_pixels + MOST_TEXT_BYTES


def check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    """Raise a TooManyPixelsError for a picture with no pixels, or more than `max_pixels`."""
    if not 0 < width * height <= max_pixels:
        raise TooManyPixelsError(f"{path}: {width} x {height} pixels, expected 1 to {max_pixels:,}")


def _check_work(path: Path, image: Any, scans: int) -> None:
    """Raise a ValueError for a picture that takes far more time to decode than usual for its size."""
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

    ValueError for very many segments: Pillow makes a list of them. Segments are skipped by their lengths, so that
    thumbnails inside them do not count; other pictures or a video may follow the first picture.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        scans, first = 0, 2
        if content[:2] != b"\xff\xd8":
            return 0
        for _ in range(_MOST_SEGMENTS):
            marker = _JPEG_MARKER.search(content, first)
            if not marker or marker[0] == b"\xff\xd9":
                return scans
            scans += marker[0] == b"\xff\xda"
            first = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    raise ValueError(f"{path}: damaged picture: a JPEG of more than {_MOST_SEGMENTS:,} segments")
