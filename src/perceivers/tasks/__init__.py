"""Recipes by name, one file each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from perceivers.tasks import (
    audioset,
    autoencoding,
    classification,
    digits,
    flow_training,
    glue,
    language_training,
    starcraft,
)
from perceivers.tasks.recipe import Recipe
from perceivers.tasks.report import report
from perceivers.training.metrics import Scores


@dataclass(frozen=True)
class Task:
    """What a name on the command line stands for."""

    recipe: Callable[[], Recipe]
    """The recipe."""
    further_scores: Callable[[Path], dict[str, Scores]] = lambda run: {}
    """Scores of a run of it, beyond those of its kinds."""
    report: Callable[[Path], Path] = report
    """Makes the report of a run of it, in its folder."""


SYSTEMS = (
    digits,
    classification,
    flow_training,
    language_training,
    glue,
    autoencoding,
    audioset,
    starcraft,
)
"""Each with RECIPES by name, `further_scores` and `report`."""

TASKS = {
    name: Task(recipe, system.further_scores, system.report)
    for system in SYSTEMS
    for name, recipe in system.RECIPES.items()
}
"""Every task of ours."""
