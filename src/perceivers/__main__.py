"""The command `perceivers`: a verb and its arguments. Wrong input gets one line and exit code 2."""

import os
import sys

import tyro

USER_ERROR = 2


def main() -> None:
    """Run the verb on the command line."""
    # Imported here, so that a broken installation is an error with a message too.
    from perceivers.cli.verbs import VERBS
    from perceivers.training.stopping import Stopped

    try:
        tyro.extras.subcommand_cli_from_dict(VERBS, prog="perceivers", description=__doc__)
    except ValueError as error:
        print(f"perceivers: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except Stopped as stopped:
        print(f"perceivers: {stopped}", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
