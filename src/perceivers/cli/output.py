"""Output streams of the command. Text from files cannot control the terminal: control characters are escaped."""

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
"""Name of our codec error handler, which escapes characters that the encoding of a stream lacks."""


class PrintableStream:
    """Wrapper of a text stream that escapes characters which act on a terminal."""

    def __init__(self, stream: Any) -> None:
        self.rich_proxied_file = stream  # rich writes its terminal codes directly here

    def write(self, text: str) -> int:
        """Write a text with its control characters escaped."""
        self.rich_proxied_file.write(printable(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write texts with their control characters escaped."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the wrapped stream."""
        return getattr(self.rich_proxied_file, name)


@contextmanager
def printable_output() -> Iterator[None]:
    """Make both output streams printable, and each warning one line of at most a kilobyte, within the context."""
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
    """Let a stream escape characters that its encoding lacks, as JSON does, within the context."""
    if not isinstance(stream, io.TextIOWrapper):  # e.g. of a notebook, or in memory
        yield
        return
    codecs.register_error(SPELLED, _spell)
    before = stream.errors
    stream.reconfigure(errors=SPELLED)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):  # its buffer cannot be flushed: another error says so
            stream.reconfigure(errors=before)


def _spell(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(spelled, error.object[error.start : error.end])), error.end


def _show_warning(warning: Warning | str, *where: Any, **options: Any) -> None:  # `where`: the line of source
    say(f"warning: {warning}")
