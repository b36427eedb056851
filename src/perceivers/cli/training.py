"""The verbs `train`, `evaluate` and `report`."""

import dataclasses
import itertools
import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import tyro

from perceivers.cli.tables import show
from perceivers.files.durable import write_text
from perceivers.files.outputs import check_outputs
from perceivers.runs.evaluate import DataSets, evaluate_run, scores_elsewhere
from perceivers.runs.prediction import group_scores
from perceivers.runs.recipe import Recipe
from perceivers.runs.results import HEADING, add_scores, keep_command, keep_scores, plain_scores, results_table
from perceivers.runs.run import Run, data_of, files_of, find_model, read_recipe
from perceivers.runs.schema_file import read_schema_file
from perceivers.runs.system import Task
from perceivers.runs.train import run_recipe
from perceivers.schema.schema_files import from_file, with_settings
from perceivers.systems import SCORERS, TASKS, UNTRAINED_BASELINES
from perceivers.training.metrics import Scores


def train(
    recipe: Annotated[str, tyro.conf.Positional],
    /,
    out: Path,
    data: str | None = None,
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SETTING=VALUE")] = (),  # noqa: A002
    from_: Annotated[str | None, tyro.conf.arg(name="from", metavar="MODEL")] = None,
    freeze: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PART")] = (),
    accept_changed_data: bool = False,
    json: bool = False,
) -> None:
    """Train a recipe in a folder, or continue a run there; then evaluate it on held-out records and write a report.

    On SIGTERM, SIGINT or SIGUSR1 it saves a checkpoint and stops with exit code 143, 130 or 75. Repeat the command to
    continue.

    Args:
        recipe: Name of a task (digits), or a schema or recipe file in YAML or JSON.
        out: Folder of the run, for recipe, log, checkpoints, metrics and report.
        data: Data in place of the file's: table (.csv, .tsv, .parquet, .jsonl), arrays (.npz, .safetensors), folder.
        set: Settings that replace the recipe's, e.g. training.num_steps=200.
        from_: Start from the weights of this model, where they fit: folder of a model or a run, or hub repository.
        freeze: Parts of the model that are not trained: latents, encoder, processor, decoder, input_adapter, ...
        accept_changed_data: Continue a run although its data have changed since it began; otherwise that is an error.
        json: Print the scores as JSON.
    """
    # Take the recipe of the task or file; then apply the flags, then the settings.
    chosen = chosen_recipe(recipe, data)
    chosen = dataclasses.replace(chosen, start_from=from_ or chosen.start_from, freeze=freeze or chosen.freeze)
    chosen = with_settings(chosen, set)
    task_of(chosen)
    if chosen.data.reads_whole_folder:
        check_outputs([out], chosen.data.source_files())
    run = run_recipe(chosen, out, lambda line: print(line, file=sys.stderr), accept_changed_data)
    keep_command(out, shlex.join(["perceivers", *sys.argv[1:]]))
    show_scores(_evaluate(run), json)
    print(f"Report: {task_of(run.recipe).report(run)}", file=sys.stderr if json else sys.stdout)


def evaluate(
    model: Annotated[str, tyro.conf.Positional], /, by: str | None = None, on: Path | None = None, json: bool = False
) -> None:
    """Score a run's best checkpoint (without validation: its newest) on held-out records; keep the scores in the run.

    Args:
        model: Folder of the run; with --on, also the folder of a model or a hub repository.
        by: Column of the run's table: also print scores for each value in it.
        on: YAML file of other data sets, `data: {NAME: {kind: ...}}`, to score on their held-out records instead.
        json: Print the scores as JSON.
    """
    if on is None:
        run = Run(Path(model))
        show_scores(_evaluate(run) | (group_scores(run, by) if by else {}), json)
        return
    if by is not None:
        raise ValueError("--by groups the records of the run, --on uses others: leave one of them out")
    scores = scores_elsewhere(find_model(model), from_file(DataSets, on).data, SCORERS, UNTRAINED_BASELINES)
    if data_of(Path(model)) is not None:
        add_scores(Path(model), scores)
    show_scores(scores, json)


def report(runs: Annotated[tuple[Path, ...], tyro.conf.Positional], /, out: Path | None = None) -> None:
    """Write an HTML report of each evaluated run, and one Markdown table of all their scores.

    Args:
        runs: Folders of runs.
        out: File for the table; by default it goes to the standard output.
    """
    if not runs:
        raise ValueError("name at least one folder of a run")
    if out is not None:
        sources = [(*files_of(run), *read_recipe(run).data.source_files()) for run in runs]
        check_outputs([out], itertools.chain(*sources))
    table = results_table(runs)
    for run in map(Run, runs):
        print(f"Report: {task_of(run.recipe).report(run)}", file=sys.stderr)
    if out is None:
        print(table, end="")
    else:
        write_text(out, HEADING + table)


def task_of(recipe: Recipe) -> Task:
    """Return the task of a recipe; ValueError if the recipe lacks an input, output or evaluation of that task."""
    if recipe.task not in TASKS:
        return Task(lambda: recipe)
    original = TASKS[recipe.task].recipe()
    for what, needed, present in (
        ("input", original.schema.inputs, recipe.schema.inputs),
        ("output", original.schema.outputs, recipe.schema.outputs),
        ("evaluation", original.evaluations, recipe.evaluations),
    ):
        # Inputs and outputs must be of the same modality; an evaluation is a dictionary in both recipes.
        if lacking := [name for name in needed if type(present.get(name)) is not type(needed[name])]:
            raise ValueError(f"task: the recipe lacks the {what} {lacking[0]!r} of {recipe.task}; leave its name out")
    return TASKS[recipe.task]


def _evaluate(run: Run) -> dict[str, Scores]:
    scores = evaluate_run(run, SCORERS) | task_of(run.recipe).baseline_scores(run)
    keep_scores(run.folder, scores)
    return scores


def show_scores(scores: Mapping[str, Scores], as_json: bool) -> None:
    """Print every metric of every output in every evaluation."""
    rows = [
        (evaluation, output, metric, f"{value:.4f}" if math.isfinite(value) else "n/a")
        for evaluation, outputs in scores.items()
        for output, metrics in outputs.items()
        for metric, value in metrics.items()
    ]
    show(plain_scores(scores), as_json, ["evaluation", "output", "metric", "score"], rows)


def chosen_recipe(name: str, data: str | None = None) -> Recipe:
    """Return the recipe of a task or of a file; ValueError if the name is neither."""
    if name in TASKS:
        if data is not None:
            raise ValueError(f"--data goes with a file, and {name} is a task: use --set data.NAME=VALUE")
        return dataclasses.replace(TASKS[name].recipe(), task=name)
    if not Path(name).suffix:
        raise ValueError(f"no task is called {name!r}: there are {', '.join(TASKS)}, or name a .yaml or .json file")
    return read_schema_file(name, data)
