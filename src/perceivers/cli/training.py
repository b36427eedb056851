"""The verbs `train` and `evaluate`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from perceivers.cli.tables import show
from perceivers.schema import with_settings
from perceivers.tasks import TASKS, Recipe, Task
from perceivers.tasks.declaration import read_declaration
from perceivers.tasks.prediction import group_scores
from perceivers.tasks.recipe import evaluate_run, run_recipe
from perceivers.training.evaluation import Scores


def train(
    recipe: Annotated[str, tyro.conf.Positional],
    /,
    out: Path,
    data: str | None = None,
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PLACE=VALUE")] = (),  # noqa: A002
    json: bool = False,
) -> None:
    """Train a recipe in a folder, or continue there; then evaluate it on held-out records and make its report.

    Args:
        recipe: Name of a task (digits), or a schema or recipe file in YAML or JSON.
        out: Folder of the run: recipe, log, checkpoints, metrics, report.
        data: Data in place of the file's: table (.csv, .tsv, .parquet, .jsonl), arrays (.npz, .safetensors), folder.
        set: Settings that replace the recipe's, e.g. training.num_steps=200.
        json: Print the scores as JSON.
    """
    task = TASKS.get(recipe) or Task(lambda: _read_recipe(recipe, data))
    scores = run_recipe(with_settings(task.recipe(), set), out)
    show_scores(scores | task.further_scores(out), json)
    Console(stderr=json).print(f"Report: {task.report(out)}")


def evaluate(run: Annotated[Path, tyro.conf.Positional], /, by: str | None = None, json: bool = False) -> None:
    """Scores of a run's newest checkpoint on held-out records.

    Args:
        run: Folder of the run.
        by: Column of its table: scores for each of its values too.
        json: Print the scores as JSON.
    """
    show_scores(evaluate_run(run) | (group_scores(run, by) if by else {}), json)


def show_scores(scores: Mapping[str, Scores], as_json: bool) -> None:
    """Every metric of every output in every evaluation."""
    rows = [
        (evaluation, output, metric, f"{value:.4f}")
        for evaluation, outputs in scores.items()
        for output, metrics in outputs.items()
        for metric, value in metrics.items()
    ]
    show(scores, as_json, ["evaluation", "output", "metric", "score"], rows)


def _read_recipe(name: str, data: str | None) -> Recipe:
    if not Path(name).suffix:
        raise ValueError(f"no task is called {name!r}: there are {', '.join(TASKS)}, or name a .yaml or .json file")
    return read_declaration(name, data)
