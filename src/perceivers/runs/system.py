"""Interface of a published system to the command line: models, recipes, scores and reports of their runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from perceivers.runs.evaluate import Scorer, UntrainedBaselines
from perceivers.runs.presets import Published
from perceivers.runs.recipe import Recipe
from perceivers.runs.report import report
from perceivers.runs.run import Run
from perceivers.training.metrics import Scores


@dataclass(frozen=True)
class Task:
    """A task: a name on the command line for a recipe and what belongs to it."""

    recipe: Callable[[], Recipe]
    """The recipe."""
    baseline_scores: Callable[[Run], dict[str, Scores]] = lambda run: {}
    """Function that returns further scores of a run of the recipe: of baselines on its records, or of its model."""
    report: Callable[[Run], Path] = report
    """Function that writes the report of a run of the recipe into its folder."""


@dataclass(frozen=True)
class System:
    """A published system."""

    recipes: Mapping[str, Callable[[], Recipe]]
    """Recipes, by their names on the command line."""
    presets: Mapping[str, Published] = field(default_factory=dict)
    """Published models, by name."""
    baseline_scores: Callable[[Run], dict[str, Scores]] = Task.baseline_scores
    """Function that returns further scores of a run of any of the recipes (`Task`)."""
    report: Callable[[Run], Path] = Task.report
    """Function that writes the report of a run of any of the recipes (`Task`)."""
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    """Scorers of data sets whose records do not fit into batches, by `DataSet.scorer`."""
    untrained_baselines: Mapping[str, UntrainedBaselines] = field(default_factory=dict)
    """Baselines that need no training, by the modality of the output that they predict."""

    @property
    def tasks(self) -> dict[str, Task]:
        """Tasks of the system, by name."""
        return {name: Task(recipe, self.baseline_scores, self.report) for name, recipe in self.recipes.items()}
