"""The page of the ablations, docs/ablations.md, from their results."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ablations.options import BASE, OPTIONS, TOGETHER
from benchmarks.ablations.results import NEEDED, RATES, SEEDS, Results
from benchmarks.ablations.running import ALL, Job
from benchmarks.ablations.tasks import TASKS, Task
from perceivers.files.durable import write_text

INTRODUCTION = """\
# What helps: the options of the config, measured

Each option of the config alone, and those that helped together, on small tasks: which of them should a user take?
`config: auto`, `from_example` and the small recipes take what helped; the paper's presets never change.

    python -m benchmarks.ablations FOLDER  # goes on where it was stopped; writes this page

A run takes {minutes:g} minutes of one thread, counted in steps: a step of each option was timed once, taking turns with
the paper's block. So a slower option makes fewer steps, and the score does not depend on how busy the machine is. The
paper's block is trained at the rates {rates}, and every option at the best of these. Scores are those of held-out
records, means of {seeds} seeds.

Every option is trained under the first seed, and under the others if it is then ahead of the mean of the paper's block
on {needed} tasks: the rest can hardly be helpful (`--every-seed` trains them too). Scores in italics lack seeds.

The **spread** of a task is the standard deviation over the seeds, pooled over all options. An option **helps** on a
task if its mean gain is larger than the spread, and **harms** if its loss is. It is called helpful if it helps on at
least {needed} tasks and harms on none.
"""


@dataclass(frozen=True)
class Column:
    """The scores of one task."""

    task: Task
    """The task."""
    steps: Mapping[str, int]
    """Steps of a run, by option."""
    scores: Mapping[str, Sequence[float]]
    """Scores of the seeds that have finished, by option."""

    @classmethod
    def of(cls, name: str, task: Task, results: Results) -> "Column":
        """Return the finished scores of a task."""
        scores = {}
        for option in (*OPTIONS, ALL):
            rate = results.rate(name, ALL if option == ALL else BASE, task.higher)
            found = [results.score(Job(name, option, rate, seed)) for seed in SEEDS] if rate else []
            known = [score for score in found if score is not None]
            if known:
                scores[option] = known
        return cls(task, {option: results.steps(name, option) for option in scores}, scores)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds, pooled over the options whose seeds have all finished; NaN without any."""
        variances = [statistics.variance(scores) for scores in self.scores.values() if len(scores) == len(SEEDS)]
        return statistics.fmean(variances) ** 0.5 if variances else math.nan

    def gain(self, option: str) -> float | None:
        """Return the mean gain over the paper's block, in units of the spread; None unless all seeds have finished."""
        if any(len(self.scores.get(name, ())) < len(SEEDS) for name in (option, BASE)):
            return None
        difference = statistics.fmean(self.scores[option]) - statistics.fmean(self.scores[BASE])
        return (difference if self.task.higher else -difference) / self.spread

    def cell(self, option: str) -> str:
        """Return the mean score, and the gain in spreads where it is larger than one; of fewer seeds only the score."""
        gain = self.gain(option)
        if gain is None:
            return f"*{statistics.fmean(self.scores[option]):.4f}*" if option in self.scores else ""
        mark = "" if option == BASE or abs(gain) <= 1 else f" **({gain:+.1f})**" if gain > 0 else f" ({gain:+.1f})"
        return f"{statistics.fmean(self.scores[option]):.4f}{mark}"


def verdict(option: str, columns: Sequence[Column], promising: bool = True) -> str:
    """Return whether an option is helpful, from its gains in spreads; `promising`: by the runs of the first seed."""
    gains = [gain for column in columns if (gain := column.gain(option)) is not None]
    helps, harms = sum(gain > 1 for gain in gains), sum(gain < -1 for gain in gains)
    begun = sum(option in column.scores for column in columns)
    if option == BASE or not begun:
        return ""
    if len(gains) < begun:
        return "not all seeds yet" if promising else "behind under the first seed"
    if helps >= NEEDED and not harms:
        return "**helpful**"
    return f"helps on {helps}, harms on {harms}" if helps or harms else "no difference"


def write_page(results: Results, folder: Path, path: Path) -> None:
    """Write the page from all runs that have finished."""
    columns = {name: Column.of(name, make(folder), results) for name, make in TASKS.items()}
    columns = {name: column for name, column in columns.items() if len(column.scores) > 1}
    every = list(columns.values())
    text = INTRODUCTION.format(
        minutes=results.minutes, rates=", ".join(f"{rate:g}" for rate in RATES), seeds=len(SEEDS), needed=NEEDED
    )
    # Scores: a row for each option, a column for each task.
    header = ["option", *(column.task.title for column in every), "verdict"]
    higher = {name: column.task.higher for name, column in columns.items()}
    titles = {name: option.title for name, option in OPTIONS.items()} | {ALL: together_title()}
    rows = [
        [title, *(c.cell(name) for c in every), verdict(name, every, name == ALL or results.is_promising(name, higher))]
        for name, title in titles.items()
    ]
    measures = ["score", *(" ".join(column.task.score) + _direction(column.task) for column in every), ""]
    spreads = ["spread", *(f"{column.spread:.4f}" for column in every), ""]
    text += "\nIn brackets: the gain in spreads, where it is larger than one.\n\n"
    text += table(header, [measures, spreads, *(row for row in rows if any(row[1:]))])
    # Steps.
    text += "\n## Steps\n\nSteps that take the minutes of a run, and seconds of one.\n\n"
    steps = [[OPTIONS[name].title, *(_steps(results, task, name) for task in columns)] for name in OPTIONS]
    text += table(["option", *(column.task.title for column in every)], steps)
    # Rates.
    text += (
        "\n## Rates\n\nScores of the first seed; every option was trained at the best rate of the paper's block.\n\n"
    )
    rates = [
        [title, *(_rate(results, task, name, rate) for task in columns)]
        for name in (BASE, ALL)
        for rate in RATES
        for title in [f"{'the paper' if name == BASE else 'together'}, {rate:g}"]
    ]
    text += table(["", *(column.task.title for column in every)], [row for row in rates if any(row[1:])])
    write_text(path, text)


def together_title() -> str:
    """Return the title of the options that helped together."""
    return f"together: {', '.join(OPTIONS[name].title for name in TOGETHER)}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _direction(task: Task) -> str:
    return ", higher is better" if task.higher else ", lower is better"


def _steps(results: Results, task: str, option: str) -> str:
    seconds = results.step_seconds[task].get(option)
    return "" if seconds is None else f"{results.steps(task, option):,} x {seconds:.3f}"


def _rate(results: Results, task: str, option: str, rate: float) -> str:
    score = results.score(Job(task, option, rate, SEEDS[0]))
    return "" if score is None else f"{score:.4f}"
