"""Pillow's pictures, opened only if their content and header say what is read here."""

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

# Never all that Pillow knows: EPS runs Ghostscript, FITS, PDF and JPEG 2000 have been bombs, libtiff prints on stderr.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""Kinds of files that `read_image` reads, told by their content, not by their name."""

MAX_PIXELS = 50_000_000
"""Height times width that readers accept unless told otherwise."""

_MOST_SCANNED = 100 * MAX_PIXELS  # pixels of all scans of a JPEG together; progressive ones have about ten scans
_MOST_SEGMENTS = 50_000  # of a JPEG; a colour profile and its scans are some hundred
_MOST_COPIED = 1 << 35  # bytes before each piece of a header, added up; of 10 MB of segments of a JPEG half of it
_EXIF, _MOST_EXIF = b"Exif\0\0", 1 << 20  # how Exif begins in a JPEG; bytes of overlapping entries
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")  # with a length behind it, but for the end of a picture
_LONGEST_RUN_LENGTHS = 2048  # side of a BMP of run lengths in pixels: Pillow unpacks it a pixel at a time, in Python


class TooManyPixelsError(ValueError):
    """A picture has more pixels than are accepted, or none."""


@contextmanager
def opened_picture(path: Path, max_pixels: int) -> Iterator[Any]:
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
            check_size(path, image.width, image.height, max_pixels)
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
                check_exif(self.exif)
        return data


def exif_of(image: Any) -> bytes:
    """Exif of a Pillow image, from where Pillow's `getexif` takes it; empty if there is none."""
    if (exif := image.info.get("exif")) is not None:
        return bytes(exif).removeprefix(_EXIF)
    try:
        return bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:])).removeprefix(_EXIF)
    except (KeyError, AttributeError, ValueError):
        return b""


def check_exif(exif: bytes) -> None:
    """Raise a ValueError if entries hold far more bytes together than there are: Pillow copies those of each."""
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


def most_bytes(max_pixels: int) -> int:
    """Bytes of a file of so many pixels: four channels of 16 bits, and as much again for what else is in it."""
    return 16 * max_pixels + MOST_TEXT_BYTES


def check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    """Raise a TooManyPixelsError for a picture of no pixels, or of more than `max_pixels`."""
    if not 0 < width * height <= max_pixels:
        raise TooManyPixelsError(f"{path}: {width} x {height} pixels, expected 1 to {max_pixels:,}")


def _check_work(path: Path, image: Any, scans: int) -> None:
    """Raise a ValueError for a picture that takes far more time than its pixels are worth."""
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
