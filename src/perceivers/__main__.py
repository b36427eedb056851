"""The command `perceivers`: a verb and its arguments. Wrong input gets one line and exit code 2."""

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
        from perceivers.cli.errors import exit_code  # not before signals are looked after

        code = exit_code(partial(_command, signals), signals)
    if code:
        sys.exit(code)


def open_streams() -> None:
    """Open a standard stream that is closed (>&-) on nothing, before a file that is opened takes its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, open(descriptor, mode, encoding="utf-8"))  # noqa: SIM115 - as long as the process


def _command(signals: EndSignals) -> None:
    from perceivers.cli.output import printable_output
    from perceivers.cli.verbs import VERBS  # takes seconds: signals and errors are looked after by now

    run = parsed(VERBS)
    signals.loading = False
    with printable_output():
        run()


def parsed(verbs: Mapping[str, Callable[..., None]]) -> Callable[[], None]:
    """The verb of the command line with its arguments, ready to run; ValueError if they are wrong."""
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
    """Return the text that tyro draws in a box, without the box, its title and its pointer to the help.

    Where the standard output is not in UTF-8 there is no box: a title, and lines of hyphens.
    """
    lines = complaint.splitlines()
    inside = [line.strip("│ ") for line in lines if line.startswith("│")] or [line.strip() for line in lines[2:]]
    parts = re.split(r"─+|-{9,}", " ".join(inside))
    plain = [re.sub(r"Error parsing \S+: |(?<=')action\.", "", part).strip(" .") for part in parts]
    said = [part for part in plain if "For full helptext" not in part]
    return "; ".join([*said, "see --help"])


def _later(verb: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    @wraps(verb)
    def with_arguments(*given: Any, **named: Any) -> Callable[[], None]:
        return partial(verb, *given, **named)

    return with_arguments


if __name__ == "__main__":
    main()
