"""Progress bars on a terminal or in a notebook; elsewhere a line of text every minute."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

SECONDS = 60.0
"""Seconds between two lines of text where there is no terminal."""

Report = Callable[..., None]
"""Function that takes the number of completed steps and, optionally, a new note to show next to it."""


@runtime_checkable
class SizedIterable(Protocol[T_co]):
    """Items that can be counted, such as a list or the batches of a loader."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[T_co]: ...


def tracked(items: SizedIterable[T], what: str) -> Iterator[T]:
    """Yield the items one by one, with a progress bar."""
    with progress(what, len(items)) as report:
        for number, item in enumerate(items, start=1):
            yield item
            report(number)


@contextmanager
def progress(
    what: str,
    total: int,
    completed: int = 0,
    enabled: bool = True,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Report]:
    """Yield a function that reports progress on the error stream: as a bar, or as at most one line a minute."""
    console = console or Console(stderr=True)
    if not enabled:
        yield _silent
    elif console.is_jupyter or (console.is_interactive and console.file.isatty()):
        with _bar(console) as bar:
            task = bar.add_task(what, total=total, completed=completed, note="")

            def update(completed: int, note: str | None = None) -> None:
                bar.update(task, completed=completed)
                if note is not None:
                    bar.update(task, note=note)

            yield update
    else:
        yield _lines(what, total, console, clock)


def _silent(completed: int, note: str | None = None) -> None:
    pass


def _lines(what: str, total: int, console: Console, clock: Callable[[], float]) -> Report:
    """Return a function that prints progress as lines of text."""
    start = last = clock()
    last_note = ""

    def report(completed: int, note: str | None = None) -> None:
        nonlocal last, last_note
        last_note, now = last_note if note is None else note, clock()
        if now - last >= SECONDS:
            last = now
            line = f"{what} {completed}/{total}  {(now - start) / 60:.0f} min  {last_note}"
            console.print(line.rstrip(), soft_wrap=True, markup=False, highlight=False)

    return report


def _bar(console: Console) -> Progress:
    """Return a bar with count, time elapsed, time left and a note; its tasks need a field `note`."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
    )
