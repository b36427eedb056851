"""The verbs of the command. Their arguments are read by tyro: docstrings are the help."""

from collections.abc import Callable

from perceivers.cli.info import info
from perceivers.cli.training import evaluate, train

VERBS: dict[str, Callable[..., None]] = {"train": train, "evaluate": evaluate, "info": info}
"""Every verb by name."""
