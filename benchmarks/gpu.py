"""The command `python -m benchmarks.gpu`: a GPU's rates for the cost model, and each algorithm of reading, by tile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import tyro

from benchmarks.measuring import MemoryMeter, gemm_rate, machine, seconds_of
from benchmarks.models import Work, build, inputs_of, moved, preset_of
from benchmarks.processes import Setting
from perceivers.core.attention import Mask
from perceivers.core.fast import algorithms
from perceivers.core.fast.cost_model import CostModel
from perceivers.core.fast.op_counts import DeviceRates
from perceivers.core.fast.planner import Plan, choose
from perceivers.core.trunk import Read, Trunk

FAMILIES = ("optical-flow", "imagenet-fourier")

TILES = ((32, 32, 64, 8), (64, 32, 64, 8), (32, 32, 32, 4), (16, 32, 64, 4), (32, 64, 32, 8), (32, 64, 64, 8))
"""Grid rows, grid columns, query columns and warps of a program of the kernel."""

LAUNCHES = 30
"""Approximate number of kernel launches of a block, for the algorithms in PyTorch."""


@dataclass(frozen=True)
class Reading:
    """Measurements of a reading."""

    name: str
    """Model, batch size, algorithm, tile."""
    seconds: float
    """Seconds of the best run."""
    memory_bytes: int
    """Peak memory without the tokens."""


def measure(
    device: Literal["cpu", "cuda"] = "cuda", batches: tuple[int, ...] = (1, 8), quick: bool = False, repeats: int = 10
) -> list[Reading]:
    """Print a GPU's rates for the cost model, then milliseconds and megabytes of reading with each algorithm.

    Args:
        device: Device to run on.
        batches: Batch sizes.
        quick: Tiny sizes, to see that everything runs.
        repeats: Number of runs; the best counts.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: torch finds no GPU")
    print(f"{machine(device).processor}: {rates(device, 1 << 16 if quick else 1 << 28, repeats)}", flush=True)
    results = []
    for family in FAMILIES:
        for batch in batches:
            for one in readings(family, Setting(device, torch.bfloat16, batch, quick), repeats):
                results.append(one)
                print(f"{one.name}: {1e3 * one.seconds:.3f} ms, {one.memory_bytes / 1e6:.0f} MB", flush=True)
    return results


def rates(device: str, numbers: int, repeats: int) -> DeviceRates:
    """Return the cost of a pass, an exponential and a launch, in multiply-adds of a float32 product."""
    single = gemm_rate(device, torch.float32) / 2
    x, few = torch.randn(numbers, device=device), torch.randn(1, device=device)

    def launches() -> None:
        for _ in range(LAUNCHES):
            few.add(1.0)

    def cost(run: Callable[[], Any], of: int) -> int:
        return max(round(single * best(run, device, repeats) / of), 1)

    return DeviceRates(
        element=cost(lambda: x.mul_(1.0), numbers),
        exponential=cost(lambda: x.exp_(), numbers),
        block=cost(launches, 1),
        numbers=1 << 26,
        score=30,
        half=max(round(gemm_rate(device, torch.bfloat16) / 2 / single), 1),
    )


def best(run: Callable[[], Any], device: str, repeats: int) -> float:
    """Return the seconds of the fastest of several runs, after one warm-up run."""
    run()
    return min(seconds_of(run, device)[0] for _ in range(repeats))


def readings(family: str, setting: Setting, repeats: int) -> Iterator[Reading]:
    """Measure reading of a released model without gradients by each algorithm, in the kernel with each tile."""
    preset = preset_of(Work(family), setting.quick)
    model = build(preset).to(setting.device, setting.dtype)
    name = f"{family}, batch {setting.batch}"
    with torch.no_grad():
        # The first cross-attention alone, with its tokens made beforehand.
        tokens, _ = model.tokens(moved(inputs_of(preset, setting.batch or 1), setting))
        (segment,) = tokens.segments.values()
        assert isinstance(model.trunk, Trunk)
        start = model.trunk.start(tokens)
        latents = start.array
        cross = next(stage for stage in model.trunk.stages if isinstance(stage, Read)).cross_attention

        def dense() -> Any:
            return cross(latents, segment.dense(latents.dtype), Mask(keys=segment.mask))

        def by(algorithm: algorithms.Algorithm) -> Callable[[], Any]:
            choice = choose(CostModel(cross, latents, segment, None), Plan(algorithm=algorithm), dense=True)
            assert choice is not None
            return lambda: algorithms.read(cross, start, segment, algorithm, choice.block_size)

        # Dense, by the kernel with each tile, then by each algorithm in PyTorch.
        yield _reading(f"{name}, dense", dense, setting, repeats)
        if algorithms.kernels_for(segment, torch.float32):
            for tile in with_tiles():
                yield _reading(f"{name}, separable, kernel {tile}", by("separable"), setting, repeats)
        with without_kernel():
            for algorithm in ("separable", "absorbed", "projected"):
                yield _reading(f"{name}, {algorithm}", by(algorithm), setting, min(repeats, 3))


def with_tiles() -> Iterator[tuple[int, ...]]:
    """Set one tile of the kernel after the other; restore the original one at the end."""
    kernels = algorithms.triton_kernels()
    names = ("ROWS", "COLUMNS", "QUERY_COLUMNS", "WARPS")
    original = [getattr(kernels, name) for name in names]
    try:
        for tile in TILES:
            for name, value in zip(names, tile, strict=True):
                setattr(kernels, name, value)
            yield tile
    finally:
        for name, value in zip(names, original, strict=True):
            setattr(kernels, name, value)


@contextmanager
def without_kernel() -> Iterator[None]:
    """Run a block as if Triton were not installed."""
    original, algorithms.triton_kernels = algorithms.triton_kernels, lambda: None  # type: ignore[assignment]
    try:
        yield
    finally:
        algorithms.triton_kernels = original


def _reading(name: str, run: Callable[[], Any], setting: Setting, repeats: int) -> Reading:
    seconds = best(run, setting.device, repeats)
    with MemoryMeter(setting.device) as meter:
        run()
    return Reading(name, seconds, meter.bytes)


if __name__ == "__main__":
    tyro.cli(measure, prog="benchmarks.gpu")
