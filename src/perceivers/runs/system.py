"""What a published system offers to the command: its models, its recipes, and how their runs are scored and shown."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from perceivers.runs.evaluate import Scorer, UntrainedBaselines
from perceivers.runs.presets import Published
from perceivers.runs.recipe import Recipe
from perceivers.runs.report import report
from perceivers.training.metrics import Scores


@dataclass(frozen=True)
class Task:
    """What a name on the command line stands for."""

    recipe: Callable[[], Recipe]
    """The recipe."""
    baseline_scores: Callable[[Path], dict[str, Scores]] = lambda run: {}
    """Scores of a run of it beyond those of its outputs' metrics: of baselines on the same records, and its own."""
    report: Callable[[Path], Path] = report
    """Makes the report of a run of it, in its folder."""


@dataclass(frozen=True)
class System:
    """A published system."""

    recipes: Mapping[str, Callable[[], Recipe]]
    """Its recipes by their names on the command line."""
    presets: Mapping[str, Published] = field(default_factory=dict)
    """Its published models by name."""
    baseline_scores: Callable[[Path], dict[str, Scores]] = Task.baseline_scores
    """Scores of a run of any of its recipes, beyond those of its outputs' metrics."""
    report: Callable[[Path], Path] = Task.report
    """Makes the report of a run of any of its recipes."""
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    """Scorers of data sets whose records no batch can hold, by `DataSet.scorer`."""
    untrained_baselines: Mapping[str, UntrainedBaselines] = field(default_factory=dict)
    """Baselines that need no training, by the kind of output that they predict."""

    @property
    def tasks(self) -> dict[str, Task]:
        """Its tasks by name."""
        return {name: Task(recipe, self.baseline_scores, self.report) for name, recipe in self.recipes.items()}
