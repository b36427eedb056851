"""Output of the command: nothing that a file says acts on the terminal."""

import codecs
import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, cast

from perceivers.cli.errors import say
from perceivers.files.messages import printable, spelled

SPELLED = "perceivers-spelled"
"""Python's name for what a stream does with letters that its encoding lacks: it spells them out."""


class PrintableStream:
    """A text stream in whose place it stands, but for characters that act on a terminal: these are spelled out."""

    def __init__(self, stream: Any) -> None:
        self.rich_proxied_file = stream  # rich writes here: its own codes, and texts that `printable` has seen

    def write(self, text: str) -> int:
        """Write a text, printable."""
        self.rich_proxied_file.write(printable(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write texts, printable."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        """Return what the stream itself has."""
        return getattr(self.rich_proxied_file, name)


@contextmanager
def printable_output() -> Iterator[None]:
    """Within: both output streams are printable, and a warning is one line of at most a kilobyte."""
    before = warnings.showwarning
    warnings.showwarning = cast(Any, _show_warning)
    try:
        with (
            spelling_out(sys.stdout),
            spelling_out(sys.stderr),
            redirect_stdout(cast(Any, PrintableStream(sys.stdout))),
            redirect_stderr(cast(Any, PrintableStream(sys.stderr))),
        ):
            yield
    finally:
        warnings.showwarning = before


@contextmanager
def spelling_out(stream: Any) -> Iterator[None]:
    """Within: a stream spells out letters that its encoding lacks, as JSON does."""
    if not isinstance(stream, io.TextIOWrapper):  # a notebook's, or one in memory
        yield
        return
    codecs.register_error(SPELLED, _spell)
    before = stream.errors
    stream.reconfigure(errors=SPELLED)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):  # what it holds back cannot be written: another error says so
            stream.reconfigure(errors=before)


def _spell(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(spelled, error.object[error.start : error.end])), error.end


def _show_warning(said: Warning | str, *where: Any, **options: Any) -> None:  # the rest: its lines of source
    say(f"warning: {said}")
