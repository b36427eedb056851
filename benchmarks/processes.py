"""Each contender runs in a process of its own, with a limit of time and of memory, and reports why it could not."""

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
"""Share of the memory that is there that a contender may have."""

FEW = 4
"""Pieces that are run where all of them would take too long."""


@dataclass(frozen=True)
class Setting:
    """How everything is run."""

    device: str = "cpu"
    """cpu or cuda."""
    dtype: torch.dtype = torch.float32
    """Of weights and inputs."""
    batch: int | None = None
    """Samples at once; None: as many as the row says."""
    quick: bool = False
    """Tiny sizes, to see that everything runs."""
    longest: float = 300.0
    """Seconds; work in pieces that would take longer is measured on a few of them."""


@dataclass(frozen=True)
class Program:
    """What a contender does to be measured."""

    pieces: Sequence[Callable[[], Any]] = ()
    """Run one after the other; none: nothing is run, something was counted."""
    outputs: Callable[[Sequence[Any]], Outputs] = lambda results: {}
    """Comparable arrays [B, ...] from what the pieces gave."""
    scale: float = 1.0
    """How much more work they stand for."""
    note: str = ""
    """What a reader of the results must know."""
    kept_bytes: int | None = None
    """Bytes kept for the backward pass, where they were counted instead of run."""


Contender = Callable[[Setting], Program]
"""Builds the model and its inputs; ImportError where a package is missing."""


@dataclass(frozen=True)
class Report:
    """What the first run showed."""

    seconds: float | None
    """Of the first run; None: there was none."""
    memory_bytes: int
    """Peak above the process with its model and inputs."""
    result_bytes: int = 0
    """Of what the run returned, which is part of it."""
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    """To compare."""
    note: str = ""
    """Of the program, and whether it was measured on a few pieces."""


class Failed(Exception):  # noqa: N818, not an error of ours
    """A contender could not be measured, and why."""


class Worker:
    """A contender in its process: first one run that shows memory and outputs, then timed runs when asked."""

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
        """Of one more run; Failed if it does not end in time, and then for good."""
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
    """Run at the tiny size: what is loaded at the first use of anything is no contender's memory."""
    for piece in contender(replace(setting, quick=True, batch=1)).pieces:
        piece()


def measured(program: Program, setting: Setting) -> tuple[Program, Report]:
    """The first run; the program with the few pieces that stand for all where those would take too long."""
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
        torch.cuda.empty_cache()  # the other contenders are on the same GPU
    return seconds * program.scale


def _limit_memory() -> int | None:
    """Let this process ask for no more memory than there is, so that it is told so instead of being killed."""
    available = available_bytes()
    if available is None:
        return None
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(available * MOST)
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return limit


def reason_of(error: Exception, limit: int | None) -> Failed:
    """Why a contender could not be measured, in a line; `limit` of its memory in bytes."""
    if isinstance(error, ImportError):
        return Failed(f"not installed: {error.name or error}")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate" in str(error):
        return Failed(f"needs more than {limit / 1e9:.1f} GB of memory" if limit else "needs more memory than there is")
    line = str(error).strip().splitlines()
    return Failed(f"{type(error).__name__}: {line[0] if line else ''}")
