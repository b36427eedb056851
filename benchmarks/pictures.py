"""Pictures of 16 bits a channel: seconds beside Pillow's of the same file, and memory beside the array's."""

import json
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from perceivers.media.image_files import read_image
from perceivers.media.png16 import read_png16, write_png16

PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column, step of rows and of columns of an interlaced PNG's parts."""

READERS = {"read_image": read_image, "read_png16": read_png16}


def pictures(side: int = 7000, repeats: int = 3, folder: Path | None = None) -> dict[str, dict[str, float]]:
    """Read pictures of noise, grey and in colours, with and without interlacing, in turn with Pillow; print ratios.

    Args:
        side: Height and width in pixels.
        repeats: How often each reader takes a turn; the median of the ratios counts.
        folder: Where the pictures are made for the while.
    """
    results = {}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for name, channels, interlaced in (("grey", 1, False), ("colours", 3, False), ("interlaced", 3, True)):
            path = make(Path(place) / f"{name}.png", side, channels, interlaced)
            for reader in READERS:
                ratios = [
                    measured(path, reader)["seconds"] / measured(path, "pillow")["seconds"] for _ in range(repeats)
                ]
                found = {"times Pillow": float(np.median(ratios)), "times array": measured(path, reader)["memory"]}
                print(f"{name:10} {reader}: {found['times Pillow']:.1f} times Pillow's seconds, ", end="")
                print(f"{found['times array']:.1f} times the array's memory", flush=True)
                results[f"{name} {reader}"] = found
    return results


def make(path: Path, side: int, channels: int, interlaced: bool) -> Path:
    """A picture whose high bytes are smooth and whose low bytes are noise, as of a camera."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 60_000, side).astype(np.uint16)
    values = (ramp[:, None, None] // 2 + ramp[None, :, None] // 2) + rng.integers(
        0, 256, (side, side, channels), np.uint16
    )
    if not interlaced:
        return write_png16(path, values)
    parts = [values[top::down, left::right].astype(">u2") for top, left, down, right in PASSES]
    data = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    header = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 1)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data, 1)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return path


def measured(path: Path, reader: str) -> dict[str, float]:
    """CPU seconds of one reading in a process of its own, and its memory as a multiple of the array's."""
    command = [sys.executable, "-m", "benchmarks.pictures", "--one", reader, str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def one(reader: str, path: Path) -> None:
    """Read once, and print what it took."""
    Image.MAX_IMAGE_PIXELS = None
    read = READERS.get(reader, lambda path: np.asarray(Image.open(path)))
    small = write_png16(path.with_name("small.png"), np.zeros((2, 3, 3), np.uint16))
    read(small)  # libraries are loaded
    Path("/proc/self/clear_refs").write_text("5")  # the record of the largest size begins anew
    before, started = peak(), time.process_time()
    array = read(path)
    seconds = time.process_time() - started
    print(json.dumps({"seconds": seconds, "memory": (peak() - before) / array.nbytes}))


def peak() -> int:
    """The most resident memory of this process so far, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], Path(sys.argv[3]))
    else:
        tyro.cli(pictures, prog="benchmarks.pictures")
