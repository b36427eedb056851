"""Output of the command: nothing that a file says acts on the terminal."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, cast

from perceivers.cli.errors import say
from perceivers.files import printable


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
    out, error = (stream and PrintableStream(stream) for stream in (sys.stdout, sys.stderr))
    try:
        with redirect_stdout(out), redirect_stderr(error):
            yield
    finally:
        warnings.showwarning = before


def _show_warning(said: Warning | str, *where: Any, **options: Any) -> None:  # the rest: its lines of source
    say(f"warning: {said}")
