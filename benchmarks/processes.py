"""Processes: each contender runs in one, with limits on time and memory, and reports the reason if it fails."""

import multiprocessing
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.measuring import MemoryMeter, available_bytes, seconds_of

Outputs = Mapping[str, Tensor]

MOST = 0.9
"""Fraction of the available memory that a contender may use."""

FEW = 4
"""Number of pieces that are run if all would take too long."""


@dataclass(frozen=True)
class Setting:
    """Settings of a run, the same for all contenders."""

    device: str = "cpu"
    """cpu or cuda."""
    dtype: torch.dtype = torch.float32
    """Precision of weights and inputs."""
    batch: int | None = None
    """Batch size; None: that of the row."""
    quick: bool = False
    """Tiny sizes, to see that everything runs."""
    longest: float = 300.0
    """Seconds; work in pieces that would take longer is measured on FEW pieces."""


@dataclass(frozen=True)
class Program:
    """Work of a contender, ready to be measured."""

    pieces: Sequence[Callable[[], Any]] = ()
    """Functions to run one after the other; none: nothing is run, only `kept_bytes` counts."""
    outputs: Callable[[Sequence[Any]], Outputs] = lambda results: {}
    """Turns the results of the pieces into comparable arrays [B, ...]."""
    scale: float = 1.0
    """Ratio of the whole work to that of the pieces."""
    note: str = ""
    """Remark for readers of the results."""
    kept_bytes: int | None = None
    """Bytes saved for the backward pass, where they are counted without a run."""


Contender = Callable[[Setting], Program]
"""Builds the model and its inputs; raises an ImportError if a package is missing."""


@dataclass(frozen=True)
class Report:
    """Measurements of the first run."""

    seconds: float | None
    """Seconds of the first run; None: nothing was run."""
    memory_bytes: int
    """Peak memory above the process with its model and inputs."""
    result_bytes: int = 0
    """Part of this memory that the results take."""
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    """Outputs to compare."""
    note: str = ""
    """Note of the program, and whether only some pieces were measured."""


class Failed(Exception):  # noqa: N818, a result, not an error
    """Reason why a contender could not be measured."""


class Worker:
    """A contender in its process: a first run gives memory and outputs, then `seconds` times further runs."""

    def __init__(self, contender: Contender, setting: Setting, limit: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, contender, setting), daemon=True)
        os.environ["OMP_NUM_THREADS"] = "1"  # a child's torch reads it when it is imported
        self.process.start()
        theirs.close()
        try:
            self._receive(None)
            self.report: Report = self._receive(limit)
        except Failed:
            self.stop()
            raise
        self.limit, self.failed = limit, False

    def seconds(self) -> float:
        """Return the seconds of one more run; Failed if it does not end in time, after which the worker is unusable."""
        self.failed = True
        try:
            self.connection.send("run")
        except OSError:
            raise self._ended() from None
        seconds = self._receive(self.limit)
        self.failed = False
        return seconds

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()

    def _receive(self, limit: float | None) -> Any:
        if not self.connection.poll(limit):
            raise Failed(f"took longer than {limit:.0f} s")
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(message, Failed):
            raise message
        return message

    def _ended(self) -> Failed:
        self.process.join()
        return Failed(f"its process ended with code {self.process.exitcode}")


def _serve(connection: Connection, contender: Contender, setting: Setting) -> None:
    """Run in the worker process: send the report of the first run, then the seconds of a run for each message."""
    torch.set_num_threads(1)
    connection.send("imported")
    limit = _limit_memory() if setting.device == "cpu" else None
    try:
        _load_kernels(contender, setting)
        program, report = measured(contender(setting), setting)
        connection.send(report)
        while connection.recv():
            connection.send(_seconds(program, setting.device))
    except EOFError:
        return
    except Exception as error:
        connection.send(reason_of(error, limit))


def _load_kernels(contender: Contender, setting: Setting) -> None:
    """Run at the tiny size, so that libraries loaded at first use do not count as memory of the contender."""
    for piece in contender(replace(setting, quick=True, batch=1)).pieces:
        piece()


def measured(program: Program, setting: Setting) -> tuple[Program, Report]:
    """Return the report of the first run, and the program to time: only FEW pieces where all would take too long."""
    if not program.pieces:
        return program, Report(None, program.kept_bytes or 0, note=program.note)
    pieces, note = list(program.pieces), program.note
    with MemoryMeter(setting.device) as meter:
        first, result = seconds_of(pieces[0], setting.device)
        results, seconds = [result], first
        if len(pieces) > FEW and first * len(pieces) > setting.longest:
            note = f"{note}; extrapolated from {FEW} of {len(pieces)} pieces".lstrip("; ")
            pieces = pieces[:FEW]
        for piece in pieces[1:]:
            more, result = seconds_of(piece, setting.device)
            results.append(result)
            seconds += more
    sizes = [x.nbytes for x in tree_leaves(results) if isinstance(x, Tensor)]
    outputs = {name: x.detach().float().cpu().numpy() for name, x in program.outputs(results).items()}
    program = replace(program, pieces=pieces, scale=len(program.pieces) / len(pieces), note=note)
    return program, Report(seconds * program.scale, meter.bytes, sum(sizes), outputs, note)


def _seconds(program: Program, device: str) -> float:
    seconds = sum(seconds_of(piece, device)[0] for piece in program.pieces)
    if device == "cuda":
        torch.cuda.empty_cache()  # the other contenders share the GPU
    return seconds * program.scale


def _limit_memory() -> int | None:
    """Limit the memory of this process to what is available, so that it gets an error instead of being killed."""
    available = available_bytes()
    if available is None:
        return None
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(available * MOST)
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return limit


def reason_of(error: Exception, limit: int | None) -> Failed:
    """Return in one line why a contender could not be measured; `limit`: its memory limit in bytes."""
    if isinstance(error, ImportError):
        return Failed(f"not installed: {error.name or error}")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate" in str(error):
        return Failed(f"needs more than {limit / 1e9:.1f} GB of memory" if limit else "needs more memory than there is")
    line = str(error).strip().splitlines()
    return Failed(f"{type(error).__name__}: {line[0] if line else ''}")
