"""Scores of runs, kept in their folders, and a table of the scores of many runs."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from perceivers.files.durable import write_text
from perceivers.files.messages import printable
from perceivers.files.opening import read_text
from perceivers.runs.run import data_of, read_recipe
from perceivers.schema.schema_files import read_checked, to_yaml
from perceivers.training.checkpoints import best_checkpoint, read_state
from perceivers.training.metrics import Scores

HEADING = """# Results

Written by `perceivers report RUN... --out FILE`. A run's first row is the run itself; below it stand its further
evaluations and its baselines on the same records. Minutes are wall-clock.

"""
"""Text above the table in a file."""

METRICS, COMMAND = "metrics.json", "command.txt"

PlainScores = dict[str, dict[str, dict[str, float | None]]]
"""Scores by evaluation, output and metric, as JSON holds them."""


def keep_scores(run: Path, scores: dict[str, Scores]) -> None:
    """Write the scores of a run into its folder."""
    write_text(run / METRICS, json.dumps(plain_scores(scores), indent=2, allow_nan=False) + "\n")


def plain_scores(scores: Mapping[str, Scores]) -> PlainScores:
    """Return scores as JSON can hold them: None (null) for a value that is not finite."""
    return {
        evaluation: {
            output: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            for output, metrics in outputs.items()
        }
        for evaluation, outputs in scores.items()
    }


def add_scores(run: Path, scores: dict[str, Scores]) -> None:
    """Add further scores of a run to those in its folder."""
    keep_scores(run, (read_scores(run) if (run / METRICS).exists() else {}) | scores)


def read_scores(run: Path) -> dict[str, Scores]:
    """Return the scores of a run by evaluation, NaN for null; ValueError if its folder holds none."""
    kept: PlainScores = read_checked(run / METRICS, PlainScores)
    return {
        evaluation: {
            output: {name: math.nan if value is None else value for name, value in metrics.items()}
            for output, metrics in outputs.items()
        }
        for evaluation, outputs in kept.items()
    }


def score_of(run: Path, evaluation: str, output: str, metric: str) -> float:
    """Return one score of a run; ValueError if there is none of that name."""
    try:
        return read_scores(run)[evaluation][output][metric]
    except KeyError as error:
        raise ValueError(f"{run / METRICS}: has no score {error} of {evaluation}: evaluate the run") from None


def keep_command(run: Path, command: str) -> None:
    """Write the command that made a run into its folder."""
    write_text(run / COMMAND, printable(command) + "\n")  # file names need not be UTF-8


def results_table(runs: Sequence[Path]) -> str:
    """Return a Markdown table with a row for each evaluation of each run, with command, seed, steps and time."""
    lines = [
        "| run | command | seed | steps | minutes | evaluation | scores |",
        "| --- | --- | ---: | ---: | ---: | --- | --- |",
    ]
    for run in runs:
        name, command, *numbers = about = _about(run)
        about = [name, f"`{command}`", *numbers]
        for row in _score_rows(run):
            lines.append(f"| {' | '.join([*about, *row])} |")
            about = [""] * len(about)
    return "\n".join(lines) + "\n"


def run_card(run: Path) -> str:
    """Return the training history and the scores of a run's model, in Markdown."""
    rows = [f"| {evaluation} | {scores} |" for evaluation, scores in _score_rows(run)]
    return "\n".join(
        [
            *("", "## Training", "", *_history(run)),
            *("```yaml", to_yaml(read_recipe(run).data).rstrip(), "```", ""),
            *("## Scores", "", "| evaluation | scores |", "| --- | --- |", *rows, ""),
        ]
    )


def _history(run: Path) -> list[str]:
    """Return command, seed, steps and time of the runs that a run started from, then of the run itself."""
    lines = []
    for ancestor in reversed(_ancestry(run)):
        _, command, seed, steps, minutes = _about(ancestor)
        lines += [f"    {command}", "", f"Seed {seed}, {steps} steps, {minutes} minutes.", ""]
    return lines


def _ancestry(run: Path) -> list[Path]:
    """Return a run and those that it started from, the earliest last; ValueError for a cycle."""
    runs = {run.resolve(): run}
    while (earlier := read_recipe(run).start_from) and data_of(Path(earlier)):
        run = Path(earlier)
        if run.resolve() in runs:
            circle = " -> ".join(map(str, [*runs.values(), run]))
            raise ValueError(f"start_from goes round in a circle: {circle}: correct the recipe of one of these runs")
        runs[run.resolve()] = run
    return list(runs.values())


def _score_rows(run: Path) -> list[tuple[str, str]]:
    """Return the name of each evaluation, and its scores as text."""
    return [(evaluation, "; ".join(_texts(outputs))) for evaluation, outputs in read_scores(run).items()]


def _texts(outputs: Scores) -> list[str]:
    return [
        f"{output} {metric} {value:.4g}" if math.isfinite(value) else f"{output} {metric} n/a"
        for output, metrics in outputs.items()
        for metric, value in metrics.items()
    ]


def _about(run: Path) -> list[str]:
    recipe, checkpoint = read_recipe(run), best_checkpoint(run)
    if checkpoint is None:
        raise ValueError(f"{run} has no whole checkpoint: train it first")
    command = read_text(run / COMMAND).strip() if (run / COMMAND).exists() else ""
    state = read_state(checkpoint)
    return [run.name, command, str(recipe.training.seed), str(state["step"]), f"{state['seconds'] / 60:.1f}"]
