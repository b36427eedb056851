"""Results of the ablations: kept in a JSON file after each run, judged, and written as a page."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.ablations.options import BASE, OPTIONS, TOGETHER
from benchmarks.ablations.running import ALL, Job
from perceivers.files.durable import write_text

RATES = (5e-4, 1e-3, 2e-3)
"""Learning rates at which the paper's block, and the options that helped together, are tried with the first seed."""

SEEDS = (0, 1, 2)
"""Seeds of the runs."""


@dataclass
class Results:
    """All that was measured."""

    machine: str = ""
    """Processor."""
    minutes: float = 4.0
    """Minutes of a run."""
    step_seconds: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """CPU seconds of a training step, by task and option; None: the option has no meaning there."""
    runs: list[dict[str, Any]] = field(default_factory=list)
    """A finished run each: the fields of its Job, its steps, score and CPU seconds."""

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Return the results in a file; none if there is no such file."""
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def write(self, path: Path) -> None:
        """Replace the file."""
        write_text(path, json.dumps(vars(self), indent=1) + "\n")

    def steps(self, task: str, option: str) -> int:
        """Return the number of steps that take a run's minutes."""
        seconds = self.step_seconds[task][option]
        assert seconds is not None
        return round(60 * self.minutes / seconds)

    def score(self, job: Job) -> float | None:
        """Return the score of a run; None if it has not finished."""
        return next((run["score"] for run in self.runs if all(run[name] == x for name, x in vars(job).items())), None)

    def rate(self, task: str, option: str, higher: bool) -> float | None:
        """Return the rate with the best score under the first seed; None as long as one is missing."""
        scores = [self.score(Job(task, option, rate, SEEDS[0])) for rate in RATES]
        known = [score for score in scores if score is not None]
        if len(known) < len(RATES):
            return None
        return RATES[scores.index(max(known) if higher else min(known))]

    def jobs(self, higher: dict[str, bool]) -> Iterator[Job]:
        """Yield the runs in order, finished ones too; those whose rate is not known yet are left out."""
        # The paper's block at three rates; then, seed by seed, every option at the best of them.
        yield from (Job(task, BASE, rate, SEEDS[0]) for rate in RATES for task in higher)
        best = {task: self.rate(task, BASE, up) for task, up in higher.items()}
        for seed in SEEDS:
            for option in OPTIONS:
                for task in higher:
                    rate = best[task]
                    if rate is not None and self.step_seconds[task].get(option) is not None:
                        yield Job(task, option, rate, seed)
        # All that helped together, tuned likewise.
        if TOGETHER:
            yield from (Job(task, ALL, rate, SEEDS[0]) for rate in RATES for task in higher)
            found = {task: self.rate(task, ALL, up) for task, up in higher.items()}
            yield from (Job(task, ALL, rate, seed) for seed in SEEDS[1:] for task, rate in found.items() if rate)
