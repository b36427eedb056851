"""Recipes by name, one file each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from perceivers.tasks import audioset, autoencoding, digits, flow_training, starcraft
from perceivers.tasks.recipe import Recipe
from perceivers.tasks.report import report
from perceivers.training.evaluation import Scores


@dataclass(frozen=True)
class Task:
    """What a name on the command line stands for."""

    recipe: Callable[[], Recipe]
    """The recipe."""
    further_scores: Callable[[Path], dict[str, Scores]] = lambda run: {}
    """Scores of a run of it, beyond those of its kinds."""
    report: Callable[[Path], Path] = report
    """Makes the report of a run of it, in its folder."""


TASKS = {
    "digits": Task(digits.recipe, digits.unread_scores, digits.report),
    **{
        name: Task(recipe, flow_training.rival_scores, flow_training.report)
        for name, recipe in flow_training.RECIPES.items()
    },
    **{name: Task(recipe, starcraft.rival_scores, starcraft.report) for name, recipe in starcraft.RECIPES.items()},
    **{
        name: Task(recipe, autoencoding.rival_scores, autoencoding.report)
        for name, recipe in autoencoding.RECIPES.items()
    },
    **{name: Task(recipe, audioset.further_scores, audioset.report) for name, recipe in audioset.RECIPES.items()},
}
"""Every task of ours."""
