"""The command `perceivers`: a verb and its arguments. Invalid input gives a one-line error and exit code 2."""

import io
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from functools import partial, wraps
from typing import Any

from perceivers.training.signals import EndSignals, end_signals


def main() -> None:
    """Run the verb on the command line."""
    open_streams()
    with end_signals() as signals:
        from perceivers.cli.errors import exit_code  # only now, when signals are handled

        code = exit_code(partial(_command, signals), signals)
    if code:
        sys.exit(code)


def open_streams() -> None:
    """Open closed standard streams (>&-) on the null device, before another file takes their descriptors."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, open(descriptor, mode, encoding="utf-8"))  # noqa: SIM115 - open until the process ends


def _command(signals: EndSignals) -> None:
    from perceivers.cli.output import printable_output
    from perceivers.cli.verbs import VERBS  # takes seconds; signals and errors are handled by now

    run = parsed(VERBS)
    signals.loading = False
    with printable_output():
        run()


def parsed(verbs: Mapping[str, Callable[..., None]]) -> Callable[[], None]:
    """Parse the command line; return its verb with the arguments, ready to run. ValueError if they are invalid."""
    import tyro

    from perceivers.cli.errors import USER_ERROR

    complaint = io.StringIO()
    later = {name: _later(verb) for name, verb in verbs.items()}
    try:
        with redirect_stderr(complaint):
            run: Callable[[], None] = tyro.extras.subcommand_cli_from_dict(
                later, prog="perceivers", description=__doc__
            )
    except SystemExit as stop:
        if stop.code != USER_ERROR:
            raise
        raise ValueError(unboxed(complaint.getvalue())) from None
    sys.stderr.write(complaint.getvalue())
    return run


def unboxed(complaint: str) -> str:
    """Return an error message of tyro without the box around it, its title and its pointer to the help.

    Where the standard output is not UTF-8, tyro prints a title and lines of hyphens instead of a box.
    """
    # The lines in the box, or those below the title.
    lines = complaint.splitlines()
    inside = [line.strip("│ ") for line in lines if line.startswith("│")] or [line.strip() for line in lines[2:]]
    # Horizontal rules separate several messages.
    parts = re.split(r"─+|-{9,}", " ".join(inside))
    plain = [re.sub(r"Error parsing \S+: |(?<=')action\.", "", part).strip(" .") for part in parts]
    messages = [part for part in plain if "For full helptext" not in part]
    return "; ".join([*messages, "see --help"])


def _later(verb: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """Return a function with the signature of a verb that binds its arguments instead of running it."""

    @wraps(verb)
    def with_arguments(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return partial(verb, *args, **kwargs)

    return with_arguments


if __name__ == "__main__":
    main()
