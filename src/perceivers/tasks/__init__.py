"""Recipes by name, one file each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from perceivers.tasks import digits
from perceivers.tasks.recipe import Recipe
from perceivers.tasks.report import report


@dataclass(frozen=True)
class Task:
    """What a name on the command line stands for."""

    recipe: Callable[[], Recipe]
    """The recipe."""
    report: Callable[[Path], Path] = report
    """Makes the report of a run of it, in its folder."""


TASKS = {"digits": Task(digits.recipe, digits.report)}
"""Every task of ours."""
