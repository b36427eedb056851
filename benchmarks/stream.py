"""The command `python -m benchmarks.stream`: reads an input that is larger than memory, part by part."""

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from perceivers import Config, LatentsConfig, Numbers, PerceiverIO, Schema, Vectors


def stream(
    inputs: int = 10**8, channels: int = 16, part: int = 1 << 20, folder: Path | None = None
) -> dict[str, float]:
    """Encode vectors from a memory-mapped file; print seconds and anonymous memory in excess of the model.

    Args:
        inputs: Number of vectors.
        channels: Channels of each vector.
        part: Number of vectors in memory at once.
        folder: Folder for the temporary file, which takes 4 * inputs * channels bytes.
    """
    torch.set_num_threads(1)
    schema = Schema(inputs={"vectors": Vectors(channels=channels)}, outputs={"numbers": Numbers(count=3)})
    model = PerceiverIO(schema, Config(LatentsConfig(num_latents=64, channels=64))).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "vectors"
        make(path, inputs, channels, part)
        array = np.memmap(path, np.float32, "r", shape=(inputs, channels))
        with Peak() as peak, torch.inference_mode():
            started = time.process_time()
            encoded = model.encode(parts(array, part))
            seconds = time.process_time() - started
    assert encoded.latents.isfinite().all()
    print(f"{inputs:,} inputs of {channels} channels: {seconds:.0f} CPU seconds, {peak.bytes / 1e6:.0f} MB")
    return {"seconds": seconds, "bytes": peak.bytes}


def make(path: Path, inputs: int, channels: int, part: int) -> None:
    """Write a file of normally distributed numbers."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for first in range(0, inputs, part):
            rng.standard_normal((min(part, inputs - first), channels), np.float32).tofile(file)


def parts(array: np.ndarray, size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield parts of an array, each copied from the file when it is needed."""
    for first in range(0, len(array), size):
        yield {"vectors": torch.from_numpy(np.array(array[first : first + size]))[None]}


class Peak:
    """Peak anonymous memory of a block of code, above the memory before it; sampled every 5 ms."""

    def __enter__(self) -> "Peak":
        self.before, self.bytes, self.done = _anonymous(), 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.bytes = max(self.bytes, _anonymous() - self.before)


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


if __name__ == "__main__":
    tyro.cli(stream, prog="benchmarks.stream")
