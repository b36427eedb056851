"""Flow files written by hand and read back, unknown flow, malformed files refused, and colours."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from perceivers.media.flow_colours import colour_wheel, flow_colours
from perceivers.media.flow_files import read_flow, write_flow
from perceivers.media.png16 import write_png16
from test_media_image import COUNTS, chunk, complaint, memory, png, read_damaged, refuse_what_is_no_file


def some_flow(height: int = 7, width: int = 11) -> np.ndarray:
    """Return float32 [H, W, 2] with one unknown pixel."""
    flow = np.random.default_rng(0).normal(0, 30, (height, width, 2)).astype(np.float32)
    flow[3, 5] = np.nan
    return flow


@pytest.mark.parametrize(("suffix", "step"), [(".flo", 0), (".png", 1 / 64), (".FLO", 0)])
def test_written_flow_is_read_as_it_was(suffix: str, step: float, tmp_path: Path) -> None:
    flow = read_flow(write_flow(tmp_path / "new" / f"a{suffix}", some_flow()))
    assert flow.shape == (7, 11, 2)
    assert flow.dtype == np.float32
    assert np.array_equal(np.isnan(flow), np.isnan(some_flow()))
    assert np.nanmax(np.abs(flow - some_flow())) <= step / 2
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_middlebury_by_hand(tmp_path: Path) -> None:
    """The layout of color_flow's flowIO: the tag reads PIEH, unknown flow is beyond 1e9."""
    values = (1.5, -2.0, 1e10, 0.0, 3.0, np.nan, -1.666e9, 4.0, 0.0, 0.0, 7.0, 8.0)
    (tmp_path / "a.flo").write_bytes(b"PIEH" + struct.pack("<ii12f", 3, 2, *values))
    nan = np.nan
    expected = [[[1.5, -2], [nan, nan], [nan, nan]], [[nan, nan], [0, 0], [7, 8]]]
    assert np.array_equal(read_flow(tmp_path / "a.flo"), np.array(expected, np.float32), equal_nan=True)


def test_unknown_as_middlebury_writes_it(tmp_path: Path) -> None:
    flow = np.array([[[np.nan, 1.0], [2.0, 3.0]]], np.float32)
    data = write_flow(tmp_path / "a.flo", flow).read_bytes()
    assert data == b"PIEH" + struct.pack("<ii4f", 2, 1, 1e10, 1e10, 2.0, 3.0)


def test_kitti_by_hand(tmp_path: Path) -> None:
    """The components are (value - 2 ** 15) / 64: right, down, and whether the flow is known."""
    row = np.array([[32768, 32768 + 64, 1], [32768 - 96, 0, 1], [40000, 40000, 0]], ">u2")
    (tmp_path / "a.png").write_bytes(png(3, 1, 16, 2, b"\0" + row.tobytes()))
    nan = np.nan
    assert np.array_equal(read_flow(tmp_path / "a.png"), np.array([[[0, 1], [-1.5, -512], [nan, nan]]]), equal_nan=True)


@pytest.mark.parametrize("suffix", [".flo", ".png"])
@pytest.mark.parametrize(
    "flow",
    [
        np.zeros((3, 5, 3), np.float32),
        np.zeros((0, 5, 2), np.float32),
        np.zeros((3, 5, 2), np.int32),
        np.full((3, 5, 2), np.inf, np.float32),
        np.full((3, 5, 2), 2e9, np.float32),
    ],
)
def test_what_is_no_flow_is_not_written(flow: np.ndarray, suffix: str, tmp_path: Path) -> None:
    complaint(lambda path: write_flow(path, flow), tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())


def test_limits_of_kitti(tmp_path: Path) -> None:
    edge = np.array([[[-512.0, 511.98]]], np.float32)
    assert np.abs(read_flow(write_flow(tmp_path / "a.png", edge)) - edge).max() <= 1 / 128
    complaint(lambda path: write_flow(path, np.array([[[0, 512.0]]], np.float32)), tmp_path / "b.png")
    assert read_flow(write_flow(tmp_path / "c.png", np.full((2, 3, 2), np.nan, np.float32))).shape == (2, 3, 2)


def test_other_suffixes(tmp_path: Path) -> None:
    (tmp_path / "a.pfm").write_text("PF")
    assert ".flo or .png" in complaint(read_flow, tmp_path / "a.pfm")
    complaint(lambda path: write_flow(path, some_flow()), tmp_path / "b.pfm")


def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    before = memory()
    headers = {
        "much": (50_000, 50_000),
        "more than there is": (5, 1000),
        "less than there is": (1, 1),
        "negative": (-3, -5),
        "none": (0, 0),
        "both": (2**31 - 1, 2**31 - 1),
    }
    for name, size in headers.items():
        (tmp_path / f"{name}.flo").write_bytes(b"PIEH" + struct.pack("<ii", *size) + bytes(800))
        complaint(read_flow, tmp_path / f"{name}.flo")
    (tmp_path / "a.png").write_bytes(png(50_000, 50_000, 16, 2, bytes(1_000_000)))
    assert "50000 x 50000" in complaint(read_flow, tmp_path / "a.png")
    write_flow(tmp_path / "b.flo", some_flow(7, 11))
    assert "7" in complaint(lambda path: read_flow(path, max_pixels=76), tmp_path / "b.flo")
    assert memory() - before < 32 << 20


def test_other_pngs_are_no_flow(tmp_path: Path) -> None:
    write_png16(tmp_path / "depth.png", np.zeros((3, 5, 1), np.uint16))
    assert "1 channels" in complaint(read_flow, tmp_path / "depth.png")
    (tmp_path / "photo.png").write_bytes(png(1, 1, 8, 2, bytes(4)))
    assert "8 bits" in complaint(read_flow, tmp_path / "photo.png")
    broken = bytearray(png(1, 1, 16, 2, bytes(7)))
    for change in (b"filter", b"stream", b"sum"):
        if change == b"filter":
            data = png(1, 1, 16, 2, b"\5" + bytes(6))
        elif change == b"stream":
            data = bytes(broken[:33]) + chunk(b"IDAT", zlib.compress(bytes(7))[:-6] + b"\xff" * 9) + chunk(b"IEND", b"")
        else:
            broken[45] ^= 1
            data = bytes(broken)
        (tmp_path / "a.png").write_bytes(data)
        complaint(read_flow, tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".flo", ".png"])
def test_what_is_no_file(suffix: str, tmp_path: Path) -> None:
    refuse_what_is_no_file(read_flow, tmp_path, suffix)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("suffix", [".flo", ".png"])
def test_damaged_files(suffix: str, count: int, tmp_path: Path) -> None:
    path = write_flow(tmp_path / f"a{suffix}", some_flow())
    read_damaged(read_flow, path.read_bytes(), path, count)


@pytest.mark.parametrize("suffix", [".flo", ".png"])
def test_cut_files_are_refused(suffix: str, tmp_path: Path) -> None:
    path = write_flow(tmp_path / f"a{suffix}", some_flow())
    good = path.read_bytes()
    for length in range(1, len(good), 7):
        path.write_bytes(good[:length])
        complaint(read_flow, path)


def test_colours_by_hand() -> None:
    flow = np.array([[[3, 0], [0, 3], [-3, 0], [0, -3], [0, 0], [np.nan, 3], [0.75, 0]]], np.float32)
    expected = [[1, 0, 0], [0.5, 1, 0], [0, 1, 1], [0.5, 0, 1], [1, 1, 1], [1, 1, 1], [1, 0.75, 0.75]]
    assert np.allclose(flow_colours(flow)[0], expected, atol=1e-6)
    assert np.allclose(flow_colours(flow, full=6.0)[0, 0], [1, 0.5, 0.5])
    assert np.allclose(flow_colours(flow, full=1.0)[0, 1], [0.5, 1, 0])


def test_colours_are_those_of_hsv() -> None:
    from matplotlib.colors import hsv_to_rgb

    flow = some_flow(13, 17)
    right, down = flow[..., 0], flow[..., 1]
    distance = np.hypot(right, down)
    hsv = np.stack([np.arctan2(down, right) / (2 * np.pi) % 1, distance / np.nanmax(distance), distance * 0 + 1], -1)
    known = ~np.isnan(distance)
    colours = flow_colours(flow)
    assert colours.dtype == np.float32
    assert np.allclose(colours[known], hsv_to_rgb(hsv[known]), atol=1e-5)
    assert (colours[~known] == 1).all()


def test_nothing_known_is_white() -> None:
    assert (flow_colours(np.full((2, 3, 2), np.nan, np.float32)) == 1).all()
    assert (flow_colours(np.zeros((2, 3, 2), np.float32)) == 1).all()


def test_wheel() -> None:
    wheel = colour_wheel(101)
    assert wheel.shape == (101, 101, 3)
    assert np.allclose(wheel[50, 50], 1, atol=1e-6)
    assert np.allclose(wheel[50, 100], [1, 0, 0], atol=0.02)
    assert np.allclose(wheel[100, 50], [0.5, 1, 0], atol=0.02)
    assert (wheel[0, 0] == 1).all()
