"""What is measured, and how: seconds, memory, ratios, growth, the machine's rate of matrix products."""

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
"""Written to clear_refs, it makes the largest resident size the present one (Linux's proc.rst)."""


def seconds_of(run: Callable[[], Any], device: str) -> tuple[float, Any]:
    """CPU seconds of this process (CUDA: seconds between two events), and what the run gave."""
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
    """Bytes that a block of code needs above what the process had before it: `with MemoryMeter(device) as meter`.

    On a CPU the resident size, so it is to be used in a fresh process, once.
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
    """Forget the largest resident size; without effect where the system does not offer it."""
    try:
        CLEAR.write_text(CLEAR_PEAK)
    except OSError:
        return


def resident_bytes() -> int:
    """Memory that this process has now."""
    return _status("VmRSS") if STATUS.exists() else peak_bytes()


def peak_bytes() -> int:
    """The most that it had since `reset_peak`, or since it began where that has no effect."""
    if STATUS.exists():
        return _status("VmHWM")
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes() -> int | None:
    """Memory that new processes can have; None where the system does not say."""
    info = Path("/proc/meminfo")
    return _kilobytes(info, "MemAvailable") if info.exists() else None


def _status(name: str) -> int:
    return _kilobytes(STATUS, name)


def _kilobytes(path: Path, name: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _give_back_freed_memory() -> None:
    # What malloc keeps would be used again unseen.
    library = ctypes.CDLL(None)
    if hasattr(library, "mallctl"):  # jemalloc is preloaded: all of its arenas
        library.mallctl(b"arena.4096.purge", None, None, None, ctypes.c_size_t(0))
    elif hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def kept_for_backward(forward: Callable[[], Any], weights: Sequence[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of a forward pass, weights aside."""
    own = {weight.untyped_storage()._cdata for weight in weights}
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return x

    with saved_tensors_hooks(note, lambda x: x):
        graph = forward()  # alive until the end, so that no storage is given out twice
    del graph
    return sum(kept.values())


def without_memory() -> FakeTensorMode:
    """Under it tensors have shapes but no content: sizes can be counted that no memory would hold."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@dataclass(frozen=True)
class Ratio:
    """How many times as much one took as the other, measured in turn."""

    median: float
    """Of the ratios of each turn."""
    low: float
    """Their lower quartile."""
    high: float
    """Their upper quartile."""


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Ratios of what was measured in the same turn: what slows a machine for a while slows both."""
    ratios = [x / y for x, y in zip(numerators, denominators, strict=True)]
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, low, high)


def log_slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of log(value) over log(size): 1 is linear growth."""
    return statistics.linear_regression([*map(math.log, sizes)], [*map(math.log, values)]).slope


def relative_difference(x: np.ndarray, reference: np.ndarray) -> float:
    """max|x - reference| / max|reference|."""
    return float(np.abs(x - reference).max() / max(np.abs(reference).max(), 1e-30))


GEMM = {"cpu": 2048, "cuda": 8192}
"""Rows of a large matrix, by device."""


def gemm_rate(device: str, dtype: torch.dtype, repeats: int = 5) -> float:
    """The best rate of a large square matrix product, in operations a second."""
    size = GEMM[device]
    x = torch.randn(size, size, device=device, dtype=dtype)  # a GPU multiplies constants faster
    return 2 * size**3 / min(seconds_of(lambda: x @ x, device)[0] for _ in range(repeats))


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    processor: str
    """Model of the CPU, or of the GPU."""
    cores: int
    """Of the CPU."""
    memory_bytes: int
    """Of the CPU, or of the GPU."""
    load: float
    """Average number of running processes in the minute before."""
    versions: dict[str, str]
    """Of Python, of the C library, of the packages that were compared; and what is preloaded."""
    device: str = "cpu"
    """cpu or cuda."""


def machine(device: str) -> Machine:
    """This machine."""
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        processor, memory = properties.name, properties.total_memory
    else:
        processor = _processor()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    packages = ("torch", "triton", "transformers", "perceiver-io", "perceiver-pytorch", "jax")
    library, release = platform.libc_ver()  # its malloc decides on a CPU's memory, unless another is preloaded
    preloaded = " ".join(Path(name).name for name in os.environ.get("LD_PRELOAD", "").split(":") if name)
    found = {"python": platform.python_version(), library: release, "preloaded": preloaded}
    versions = {name: v for name, v in (found | {name: _version(name) for name in packages}).items() if v}
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
