"""Measurement of seconds, memory, ratios, growth, and the machine's rate of matrix products."""

import ctypes
import gc
import math
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

CLEAR_PEAK = "5"
"""Written to clear_refs, it resets the peak resident size to the current one (Linux's proc.rst)."""


def seconds_of(run: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Return the CPU seconds of a run in this process (CUDA: seconds between two events), and its result."""
    if device == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = run()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1000, result
    begin = time.process_time()
    result = run()
    return time.process_time() - begin, result


class MemoryMeter:
    """Peak memory of a block of code in bytes, above the memory before it: `with MemoryMeter(device) as meter`.

    On a CPU it is the resident size: use the meter once, in a fresh process.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> "MemoryMeter":
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            _give_back_freed_memory()
            reset_peak()
            self.before = resident_bytes()
        return self

    def __exit__(self, *_: object) -> None:
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else peak_bytes()
        self.bytes = max(peak - self.before, 0)


def reset_peak() -> None:
    """Reset the peak resident size; no effect where the system does not support it."""
    try:
        CLEAR.write_text(CLEAR_PEAK)
    except OSError:
        return


def resident_bytes() -> int:
    """Return the resident size of this process."""
    return _status("VmRSS") if STATUS.exists() else peak_bytes()


def peak_bytes() -> int:
    """Return the peak resident size since `reset_peak`, or since the process began where that has no effect."""
    if STATUS.exists():
        return _status("VmHWM")
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes() -> int | None:
    """Return the memory that is available to new processes; None where the system does not report it."""
    info = Path("/proc/meminfo")
    return _kilobytes(info, "MemAvailable") if info.exists() else None


def _status(name: str) -> int:
    return _kilobytes(STATUS, name)


def _kilobytes(path: Path, name: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _give_back_freed_memory() -> None:
    # Memory that malloc keeps after free would be reused without a growth of the resident size.
    library = ctypes.CDLL(None)
    if hasattr(library, "mallctl"):  # jemalloc is preloaded: purge all of its arenas
        library.mallctl(b"arena.4096.purge", None, None, None, ctypes.c_size_t(0))
    elif hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def kept_for_backward(forward: Callable[[], Any], weights: Sequence[Tensor]) -> int:
    """Return the bytes that autograd saves in a forward pass for the backward pass, except weights."""
    of_weights = {weight.untyped_storage()._cdata for weight in weights}
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in of_weights:
            kept[storage._cdata] = storage.nbytes()
        return x

    with saved_tensors_hooks(note, lambda x: x):
        graph = forward()  # alive until the end, so that the id of a storage is not reused
    del graph
    return sum(kept.values())


def without_memory() -> FakeTensorMode:
    """Return a mode in which tensors have shapes but no content, to count sizes that exceed any memory."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@dataclass(frozen=True)
class Ratio:
    """Ratio of two contenders' measurements, over the turns."""

    median: float
    """Median of the ratios of all turns."""
    low: float
    """Lower quartile."""
    high: float
    """Upper quartile."""


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Return the ratio of measurements of the same turn: a slow phase of the machine affects both."""
    ratios = [x / y for x, y in zip(numerators, denominators, strict=True)]
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, low, high)


def log_slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the least-squares slope of log(value) over log(size); 1 is linear growth."""
    return statistics.linear_regression([*map(math.log, sizes)], [*map(math.log, values)]).slope


def relative_difference(x: np.ndarray, reference: np.ndarray) -> float:
    """Return max|x - reference| / max|reference|."""
    return float(np.abs(x - reference).max() / max(np.abs(reference).max(), 1e-30))


GEMM = {"cpu": 2048, "cuda": 8192}
"""Size of a large square matrix, by device."""


def gemm_rate(device: str, dtype: torch.dtype, repeats: int = 5) -> float:
    """Return the best rate of a large square matrix product, in operations a second."""
    size = GEMM[device]
    x = torch.randn(size, size, device=device, dtype=dtype)  # random: a GPU multiplies constants faster
    return 2 * size**3 / min(seconds_of(lambda: x @ x, device)[0] for _ in range(repeats))


@dataclass(frozen=True)
class Machine:
    """Machine that measured."""

    processor: str
    """Model of the CPU or GPU."""
    cores: int
    """Number of CPU cores."""
    memory_bytes: int
    """Memory of the CPU or GPU."""
    load: float
    """Average number of running processes in the minute before."""
    versions: dict[str, str]
    """Versions of Python, the C library and the compared packages; names of preloaded libraries."""
    device: str = "cpu"
    """cpu or cuda."""


def machine(device: str) -> Machine:
    """Return a description of this machine."""
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        processor, memory = properties.name, properties.total_memory
    else:
        processor = _processor()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    packages = ("torch", "triton", "transformers", "perceiver-io", "perceiver-pytorch", "jax")
    library, release = platform.libc_ver()  # its malloc determines the memory on a CPU, unless another is preloaded
    preloaded = " ".join(Path(name).name for name in os.environ.get("LD_PRELOAD", "").split(":") if name)
    basic = {"python": platform.python_version(), library: release, "preloaded": preloaded}
    versions = {name: v for name, v in (basic | {name: _version(name) for name in packages}).items() if v}
    return Machine(processor, os.cpu_count() or 1, memory, os.getloadavg()[0], versions, device)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{names[0] if names else platform.processor()} ({capability})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
