"""Pictures of 16 bits a channel: reading time relative to Pillow, and memory relative to the array."""

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
"""First row, first column, row step and column step of the passes of an interlaced PNG."""

READERS = {"read_image": read_image, "read_png16": read_png16}


def pictures(side: int = 7000, repeats: int = 3, folder: Path | None = None) -> dict[str, dict[str, float]]:
    """Read noisy pictures, grey and in colours, with and without interlacing, in turn with Pillow; print ratios.

    Args:
        side: Height and width in pixels.
        repeats: Number of turns; the median of the ratios counts.
        folder: Folder for the temporary pictures.
    """
    results = {}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for name, channels, interlaced in (("grey", 1, False), ("colours", 3, False), ("interlaced", 3, True)):
            path = make(Path(temporary) / f"{name}.png", side, channels, interlaced)
            for reader in READERS:
                ratios = [
                    measured(path, reader)["seconds"] / measured(path, "pillow")["seconds"] for _ in range(repeats)
                ]
                multiples = {"times Pillow": float(np.median(ratios)), "times array": measured(path, reader)["memory"]}
                print(f"{name:10} {reader}: {multiples['times Pillow']:.1f} times Pillow's seconds, ", end="")
                print(f"{multiples['times array']:.1f} times the array's memory", flush=True)
                results[f"{name} {reader}"] = multiples
    return results


def make(path: Path, side: int, channels: int, interlaced: bool) -> Path:
    """Write a picture with smooth high bytes and noisy low bytes, as a camera gives."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 60_000, side).astype(np.uint16)
    values = (ramp[:, None, None] // 2 + ramp[None, :, None] // 2) + rng.integers(
        0, 256, (side, side, channels), np.uint16
    )
    if not interlaced:
        return write_png16(path, values)
    # Pillow and write_png16 write no interlaced PNG: build one by hand.
    parts = [values[top::down, left::right].astype(">u2") for top, left, down, right in PASSES]
    data = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    header = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 1)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data, 1)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return path


def measured(path: Path, reader: str) -> dict[str, float]:
    """Return the CPU seconds of one reading in a new process, and its memory relative to the array."""
    command = [sys.executable, "-m", "benchmarks.pictures", "--one", reader, str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def one(reader: str, path: Path) -> None:
    """Read a picture once, and print seconds and memory."""
    Image.MAX_IMAGE_PIXELS = None
    read = READERS.get(reader, lambda path: np.asarray(Image.open(path)))
    small = write_png16(path.with_name("small.png"), np.zeros((2, 3, 3), np.uint16))
    read(small)  # load libraries first
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak resident size
    before, started = peak(), time.process_time()
    array = read(path)
    seconds = time.process_time() - started
    print(json.dumps({"seconds": seconds, "memory": (peak() - before) / array.nbytes}))


def peak() -> int:
    """Return the peak resident size of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], Path(sys.argv[3]))
    else:
        tyro.cli(pictures, prog="benchmarks.pictures")
