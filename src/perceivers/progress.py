"""How long work shows itself."""

from collections.abc import Collection, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

T = TypeVar("T")


def tracked(items: Collection[T] | DataLoader[T], what: str) -> Iterator[T]:
    """The items one by one, counted by a bar."""
    with progress_bar() as progress:
        task = progress.add_task(what, total=len(items), note="")
        for item in items:
            yield item
            progress.advance(task)


def progress_bar(disable: bool = False) -> Progress:
    """A bar on the error stream, with count, time gone, time left and a note; tasks need a field `note`."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
        disable=disable,
    )
