"""Pictures: every mode and orientation, sizes by hand and by TensorFlow, and malformed files refused."""

import io
import os
import resource
import struct
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from perceivers.media.image_files import image_size, read_image, write_image
from perceivers.media.png16 import read_png16, write_png16
from perceivers.media.resampling import imagenet_crop, resize
from tiers import few

COUNTS = [20, pytest.param(200, marks=pytest.mark.slow)]
"""Numbers of damaged files of each format, in `make test` and in `make proof`."""


def damaged(good: bytes, count: int) -> Iterator[bytes]:
    """Yield files cut off, changed anywhere or in the header, with parts removed, overwritten or repeated, in turn."""
    rng = np.random.default_rng(0)
    for number in range(count):
        data = bytearray(good)
        begin, end = sorted(int(place) for place in rng.integers(0, len(data), 2))
        match number % 6:
            case 0:
                del data[1 + end :]
            case 1:
                for place in rng.integers(0, len(data), int(rng.integers(1, 20))):
                    data[place] = int(rng.integers(256))
            case 2:
                for place in rng.integers(0, min(len(data), 200), int(rng.integers(1, 4))):
                    data[place] = int(rng.choice([0, 1, 127, 128, 255]))
            case 3:
                del data[begin:end]
            case 4:
                data[begin:end] = rng.bytes(end - begin)
            case 5:
                data[begin:begin] = data[begin:end]
        yield bytes(data)


def complaint(read: Callable[[Path], object], path: Path) -> str:
    """Return the error message of a reader for a bad file: one line that names the file."""
    with pytest.raises(ValueError, match=": ") as error:
        read(path)
    return one_line_about(path, error.value)


def one_line_about(path: Path, error: ValueError) -> str:
    """Return the text of an error, which must be one line that names the file."""
    line = str(error)
    assert line.startswith(f"{path}: "), line
    assert "\n" not in line
    assert len(line) < len(str(path)) + 250
    return line


def read_damaged(read: Callable[[Path], np.ndarray], good: bytes, path: Path, count: int) -> None:
    """Check that every damaged file is read as an array or refused in one line, and leaves no other files.

    Some are refused: the damage is none that nobody sees.
    """
    refused = 0
    for data in damaged(good, count):
        path.write_bytes(data)
        try:
            assert read(path).size
        except ValueError as error:
            one_line_about(path, error)
            refused += 1
        assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert refused


def refuse_what_is_no_file(read: Callable[[Path], object], folder: Path, suffix: str) -> None:
    """Check missing files, folders, pipes, empty and random files, texts and impossible names: one line each."""
    assert "No such file" in complaint(read, folder / f"missing{suffix}")
    (folder / f"folder{suffix}").mkdir()
    assert "not a file" in complaint(read, folder / f"folder{suffix}")
    os.mkfifo(folder / f"pipe{suffix}")
    assert "not a file" in complaint(read, folder / f"pipe{suffix}")
    (folder / f"loop{suffix}").symlink_to(folder / f"loop{suffix}")
    complaint(read, folder / f"loop{suffix}")
    noise = np.random.default_rng(0).bytes(5000)
    for name, data in (("empty", b""), ("text", b"no more than words\n" * 99), ("noise", noise)):
        (folder / f"{name}{suffix}").write_bytes(data)
        assert ("is empty" in complaint(read, folder / f"{name}{suffix}")) == (name == "empty")


def memory() -> int:
    """Return the peak resident size of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def photo(height: int = 37, width: int = 53) -> np.ndarray:
    """Return uint8 [H, W, 3] that differs under every flip and transposition."""
    down, right = np.mgrid[:height, :width]
    return np.stack([down * 255 // height, right * 255 // width, (down * right) % 256], axis=-1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, depth: int, colour: int, data: bytes, interlaced: int = 0, extra: bytes = b""
) -> bytes:
    """Return a PNG assembled by hand; `data` before compression."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".PNG"])
def test_written_pictures_are_read_as_they_were(suffix: str, tmp_path: Path) -> None:
    path = write_image(tmp_path / "new" / f"a{suffix}", photo())
    assert np.array_equal(read_image(path), photo())
    assert os.listdir(tmp_path / "new") == [path.name]


def test_jpeg_is_nearly_so(tmp_path: Path) -> None:
    smooth = np.repeat(np.linspace(0, 255, 40, dtype=np.uint8)[None, :, None], 30, axis=0).repeat(3, axis=2)
    assert np.abs(read_image(write_image(tmp_path / "a.jpg", smooth)).astype(int) - smooth).max() <= 3


def test_writing_floats_and_grey(tmp_path: Path) -> None:
    written = write_image(tmp_path / "a.png", np.array([[0.0, 0.5, 1.0]], np.float32)[:, :, None])
    assert read_image(written)[0, :, 2].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 3, 4), np.uint8),
        np.zeros((0, 3, 3), np.uint8),
        np.zeros((2, 3, 3), np.int64),
        np.full((2, 3, 3), 200.0),
        np.full((2, 3, 3), np.nan),
        np.zeros(7, np.uint8),
    ],
)
def test_what_is_no_picture_is_not_written(pixels: np.ndarray, tmp_path: Path) -> None:
    complaint(lambda path: write_image(path, pixels), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    complaint(lambda path: write_image(path, photo()), tmp_path / "a.tiff")
    (tmp_path / "a.png").mkdir()
    complaint(lambda path: write_image(path, photo()), tmp_path / "a.png")
    (tmp_path / "file").write_text("kept")
    complaint(lambda path: write_image(path, photo()), tmp_path / "file" / "a.png")
    complaint(lambda path: write_image(path, np.zeros((1, 20_000, 3), np.uint8)), tmp_path / "wide.webp")
    assert sorted(os.listdir(tmp_path)) == ["a.png", "file"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_orientation(orientation: int, kind: str, tmp_path: Path) -> None:
    turns = Image.Transpose
    stored = {  # a rotated camera stores the inverse of the transposition that shows the picture upright
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_90,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_270,
    }
    image = Image.fromarray(photo())
    image = image if orientation == 1 else image.transpose(stored[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"exif": exif.tobytes()} | ({"lossless": True} if kind == "WEBP" else {})
    (tmp_path / "a").write_bytes(encoded(image, kind, **settings))
    assert np.array_equal(read_image(tmp_path / "a"), photo())
    assert image_size(tmp_path / "a") == photo().shape[:2]


def test_broken_orientation_is_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(encoded(Image.fromarray(photo()), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\0"))
    assert np.array_equal(read_image(tmp_path / "a"), photo())


COLOUR, HALF = (200, 100, 50), (227, 177, 152)
"""A colour, and the same over white with an alpha of 128."""


def image_of(mode: str) -> tuple[Image.Image, str, dict[str, object], tuple[int, int, int]]:
    """Return a picture of one mode, a format that holds it, settings, and the colour that must be read."""
    palette = Image.new("P", (5, 7), 1)
    palette.putpalette([0, 0, 0, *COLOUR])
    return {
        "1": (Image.new("1", (5, 7), 1), "PNG", {}, (255, 255, 255)),
        "L": (Image.new("L", (5, 7), 77), "PNG", {}, (77, 77, 77)),
        "LA": (Image.new("LA", (5, 7), (200, 128)), "PNG", {}, (227, 227, 227)),
        "L and a transparent grey": (Image.new("L", (5, 7), 77), "PNG", {"transparency": 77}, (255, 255, 255)),
        "P": (palette, "PNG", {}, COLOUR),
        "P and alpha": (palette, "PNG", {"transparency": bytes([0, 128])}, HALF),
        "P of a GIF": (palette, "GIF", {}, COLOUR),
        "transparent GIF": (palette, "GIF", {"transparency": 1}, (255, 255, 255)),
        "P of a BMP": (palette, "BMP", {}, COLOUR),
        "RGB": (Image.new("RGB", (5, 7), COLOUR), "PNG", {}, COLOUR),
        "RGB and a transparent colour": (
            Image.new("RGB", (5, 7), COLOUR),
            "PNG",
            {"transparency": COLOUR},
            (255, 255, 255),
        ),
        "RGBA": (Image.new("RGBA", (5, 7), (*COLOUR, 128)), "PNG", {}, HALF),
        "RGBA of a WebP": (Image.new("RGBA", (5, 7), (*COLOUR, 128)), "WEBP", {"lossless": True}, HALF),
        "nothing of RGBA": (Image.new("RGBA", (5, 7), (*COLOUR, 0)), "PNG", {}, (255, 255, 255)),
        "L of a JPEG": (Image.new("L", (5, 7), 77), "JPEG", {}, (77, 77, 77)),
        "RGB of a JPEG": (Image.new("RGB", (5, 7), COLOUR), "JPEG", {"quality": 95}, COLOUR),
        "CMYK": (Image.new("CMYK", (5, 7), (55, 155, 205, 0)), "JPEG", {"quality": 95}, COLOUR),
        "I;16": (Image.fromarray(np.full((7, 5), 100 * 257 + 128, np.uint16)), "PNG", {}, (100, 100, 100)),
        "I;16, rounded up": (Image.fromarray(np.full((7, 5), 100 * 257 + 129, np.uint16)), "PNG", {}, (101, 101, 101)),
    }[mode]


@pytest.mark.parametrize(
    "mode",
    [
        *("1", "L", "LA", "L and a transparent grey", "P", "P and alpha", "P of a GIF", "transparent GIF"),
        *("P of a BMP", "RGB", "RGB and a transparent colour", "RGBA", "RGBA of a WebP", "nothing of RGBA"),
        *("L of a JPEG", "RGB of a JPEG", "CMYK", "I;16", "I;16, rounded up"),
    ],
)
def test_modes(mode: str, tmp_path: Path) -> None:
    image, kind, settings, expected = image_of(mode)
    (tmp_path / "a").write_bytes(encoded(image, kind, **settings))
    pixels = read_image(tmp_path / "a")
    assert pixels.shape == (7, 5, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).max() <= (2 if kind == "JPEG" else 0)


def test_first_frame_of_several(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 7), colour) for colour in (COLOUR, (0, 0, 0), (9, 9, 9))]
    (tmp_path / "a.gif").write_bytes(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (read_image(tmp_path / "a.gif") == COLOUR).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits(channels: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (13, 11, channels)).astype(np.uint16)
    path = write_png16(tmp_path / "a.png", values)
    assert np.array_equal(read_png16(path), values)
    # FFmpeg decodes the same.
    kind = {1: "gray16be", 2: "ya16be", 3: "rgb48be", 4: "rgba64be"}[channels]
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert frame.format.name == kind
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(13, plane.line_size)[:, : 11 * 2 * channels]
    assert np.array_equal(np.ascontiguousarray(rows).view(">u2").reshape(13, 11, channels), values)
    # To 8 bits, by hand.
    colours, alpha = (values, 65535) if channels % 2 else (values[:, :, :-1], values[:, :, -1:])
    expected = (65535 - (65535 - colours.astype(float)) * alpha / 65535) / 257
    assert np.abs(read_image(path) - expected).max() <= 0.51


@pytest.mark.parametrize("prediction", ["none", "sub", "up", "avg", "paeth", "mixed"])
def test_16_bits_as_ffmpeg_filters_them(prediction: str, tmp_path: Path) -> None:
    values = np.cumsum(np.random.default_rng(0).integers(-300, 300, (23, 19, 3)), axis=1).astype(np.uint16)
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 19, 23, "rgb48be", Fraction(1, 25)
    encoder.options = {"pred": prediction}
    frame = av.VideoFrame(19, 23, "rgb48be")
    rows = np.zeros((23, frame.planes[0].line_size), np.uint8)
    rows[:, : 19 * 6] = values.astype(">u2").view(np.uint8).reshape(23, -1)
    frame.planes[0].update(rows.tobytes())
    (tmp_path / "a.png").write_bytes(b"".join(bytes(packet) for packet in encoder.encode(frame) + encoder.encode(None)))
    assert np.array_equal(read_png16(tmp_path / "a.png"), values)


@pytest.mark.parametrize("size", [(9, 11), (1, 1), (3, 2), (8, 8)])
def test_16_bits_interlaced(size: tuple[int, int], tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (*size, 3)).astype(np.uint16)
    steps = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    passes = [values[top::down, left::right].astype(">u2") for top, left, down, right in steps]
    data = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    (tmp_path / "a.png").write_bytes(png(size[1], size[0], 16, 2, data, interlaced=1))
    assert np.array_equal(read_png16(tmp_path / "a.png"), values)
    assert np.abs(read_image(tmp_path / "a.png") - values / 257).max() <= 0.5


def test_16_bits_with_a_transparent_colour(tmp_path: Path) -> None:
    row = np.array([[1000, 2000, 3000], [1000, 2000, 3001]], ">u2")
    extra = chunk(b"tRNS", struct.pack(">HHH", 1000, 2000, 3000))
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, b"\0" + row.tobytes(), extra=extra))
    assert read_image(tmp_path / "a.png")[0].tolist() == [[255, 255, 255], [4, 8, 12]]


def test_16_bits_only(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", photo())
    assert "8 bits" in complaint(read_png16, tmp_path / "a.png")
    complaint(lambda path: write_png16(path, np.zeros((3, 2, 5), np.uint16)), tmp_path / "b.png")
    complaint(lambda path: write_png16(path, np.zeros((3, 2, 3), np.uint8)), tmp_path / "b.png")


def bombs() -> dict[str, bytes]:
    """Return small files whose headers announce 50,000 x 50,000 pixels, or whose data unpack to more than announced."""
    small = Image.new("RGB", (8, 8))
    gif, bmp, jpeg = encoded(small, "GIF"), encoded(small, "BMP"), encoded(small, "JPEG")
    start = jpeg.index(b"\xff\xc0") + 5
    return {
        "png": png(50_000, 50_000, 8, 2, bytes(10_000_000)),
        "png of 16 bits": png(50_000, 50_000, 16, 2, bytes(10_000_000)),
        "png of 70 megapixels": png(10_000, 7_000, 8, 2, bytes(1_000_000)),
        "png, much data": png(4, 4, 16, 2, bytes(40_000_000)),
        "png, very much data": png(4, 4, 16, 2, bytes(400_000_000)),
        "gif": gif[:6] + struct.pack("<HH", 50_000, 50_000) + gif[10:],
        "bmp": bmp[:18] + struct.pack("<ii", 50_000, 50_000) + bmp[26:],
        "jpeg": jpeg[:start] + struct.pack(">HH", 50_000, 50_000) + jpeg[start + 4 :],
    }


def test_bombs(tmp_path: Path) -> None:
    for name, data in bombs().items():
        (tmp_path / name).write_bytes(data)
    before = memory()
    for name in os.listdir(tmp_path):
        line = complaint(read_image, tmp_path / name)
        assert ("more data than" in line or "more than" in line) if "data" in name else "pixels" in line
    assert memory() - before < 64 << 20


def test_own_limit(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", photo(10, 10))
    assert read_image(tmp_path / "a.png", max_pixels=100).shape == (10, 10, 3)
    assert "10 x 10" in complaint(lambda path: read_image(path, max_pixels=99), tmp_path / "a.png")


def test_what_is_no_file(tmp_path: Path) -> None:
    refuse_what_is_no_file(read_image, tmp_path, ".png")
    refuse_what_is_no_file(read_png16, tmp_path, ".16.png")


def test_formats_that_are_not_read(tmp_path: Path) -> None:
    for kind in ("TIFF", "PPM", "ICO", "EPS", "PDF", "TGA"):
        (tmp_path / f"{kind}.png").write_bytes(encoded(Image.fromarray(photo()), kind))
        assert "PNG, JPEG" in complaint(read_image, tmp_path / f"{kind}.png")


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    "kind", few(["PNG", "JPEG", "progressive", "WEBP", "BMP", "GIF", "16 bits"], ["PNG", "JPEG", "GIF"])
)
def test_damaged_files(kind: str, count: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if kind == "16 bits":
        good = write_png16(tmp_path / "a.png", photo().astype(np.uint16) * 257).read_bytes()
    elif kind == "progressive":
        good = encoded(Image.fromarray(photo()), "JPEG", progressive=True)
    else:
        good = encoded(Image.fromarray(photo()), kind, exif=Image.Exif().tobytes())
    read_damaged(read_image, good, tmp_path / "a.png", count)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_cut_files_are_refused(kind: str, tmp_path: Path) -> None:
    good = encoded(Image.fromarray(photo()), kind)
    for length in np.linspace(1, 0.95 * len(good), 13).astype(int):
        (tmp_path / "a").write_bytes(good[:length])
        complaint(read_image, tmp_path / "a")


def test_cubic_by_hand() -> None:
    impulse = np.zeros((1, 9, 1), np.float32)
    impulse[0, 4] = 1
    # Twice as wide: new pixels lie a quarter off the old ones, where Keys' cubic has these weights.
    near, far = 0.8671875, -0.0703125
    middle, other = 0.2265625, -0.0234375
    expected = [other, far, middle, near, near, middle, far, other]
    assert np.allclose(resize(impulse, (1, 18))[0, 5:13, 0], expected, atol=1e-7)
    # At the border, the inner weights are rescaled to sum to one: the result overshoots, it is not clamped.
    assert np.isclose(resize(np.array([[[1.0], [0.0], [0.0]]]), (1, 6))[0, 0, 0], near / (near + far))


def test_resize_as_tensorflow() -> None:
    image = np.array([[0, 255, 30, 90, 200], [10, 0, 255, 120, 60], [250, 40, 5, 180, 0]], np.uint8)[:, :, None]
    recorded = {  # tf.image.resize(image, (4, 3), antialias=False), TensorFlow 2
        "bicubic": [
            [82.1569, 18.2463, 176.9775],
            [14.4788, 188.5594, 110.3023],
            [65.6240, 177.4743, 58.8040],
            [203.5288, -8.0597, 54.7675],
        ],
        "bilinear": [[85, 30, 163.3333], [36.0417, 170.625, 111.25], [71.6667, 161.25, 72.5], [180, 5, 60]],
        "area": [[102, 87, 156], [38, 147, 108], [59.3333, 133.6667, 80], [166, 47, 72]],
    }
    assert np.allclose(resize(image, (4, 3))[:, :, 0], recorded["bicubic"], atol=1e-4)
    assert np.allclose(resize(image, (4, 3), "bilinear")[:, :, 0], recorded["bilinear"], atol=1e-4)
    assert np.allclose(resize(image, (4, 3), "area")[:, :, 0], recorded["area"], atol=1e-4)


@pytest.mark.parametrize("kind", ["bicubic", "bilinear", "area"])
def test_resize_keeps_what_must_stay(kind: str) -> None:
    image = photo(13, 17)
    assert np.allclose(resize(image, (13, 17), kind), image, atol=1e-4)
    assert np.allclose(resize(np.full((13, 17, 2), 7.0), (31, 5), kind), 7, atol=1e-5)
    assert resize(image, (5, 23), kind).dtype == np.float32
    assert np.allclose(resize(image, (5, 23), kind)[:, ::-1], resize(image[:, ::-1], (5, 23), kind), atol=0.3)


def test_resize_refuses() -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        resize(photo(), (0, 3))
    with pytest.raises(ValueError, match="expected"):
        resize(photo()[:, :, 0], (2, 3))


def test_imagenet_crop_rounds_its_offset_up() -> None:
    image = photo(9, 12)  # side 7, offsets 1 and 2.5
    assert np.array_equal(imagenet_crop(image, 7), image[1:8, 3:10].astype(np.float32))
    whole = imagenet_crop(photo(256, 300))
    assert np.array_equal(whole, photo(256, 300)[16:240, 38:262].astype(np.float32))
    with pytest.raises(ValueError, match="at least 2 x 2"):
        imagenet_crop(photo(1, 5))
