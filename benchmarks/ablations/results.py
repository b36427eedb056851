"""Results of the ablations: kept in a JSON file after each run, judged, and written as a page."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.ablations.options import BASE, OPTIONS, TOGETHER
from benchmarks.ablations.running import ALL, Job
from perceivers.files.durable import write_text

RATES = (5e-4, 1e-3, 2e-3)
"""Learning rates at which the paper's block, and the options that helped together, are tried with the first seed."""

SEEDS = (0, 1, 2)
"""Seeds of the runs."""

NEEDED = 3
"""Number of tasks on which an option must help to be called helpful."""


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

    def promise(self, option: str, higher: Mapping[str, bool]) -> int:
        """Return on how many tasks an option under the first seed is ahead of the mean of the paper's block."""
        ahead = 0
        for task, up in higher.items():
            if (rate := self.rate(task, BASE, up)) is not None:
                own = self.score(Job(task, option, rate, SEEDS[0]))
                base = [score for seed in SEEDS if (score := self.score(Job(task, BASE, rate, seed))) is not None]
                ahead += own is not None and (own > fmean(base) if up else own < fmean(base))
        return ahead

    def is_promising(self, option: str, higher: Mapping[str, bool]) -> bool:
        """Return whether an option may still be helpful, by its runs under the first seed."""
        return self.promise(option, higher) >= NEEDED

    def jobs(self, higher: Mapping[str, bool], every_seed: bool = False) -> Iterator[Job]:
        """Yield the runs in order, finished ones too; those whose rate is not known yet are left out.

        every_seed: options that are not promising are trained under the other seeds too.
        """
        # The paper's block at three rates; at the best of them under every seed, and every option under the first.
        yield from self._tuned(BASE, higher)
        for option in OPTIONS:
            yield from self._at_rate_of(BASE, option, higher, SEEDS[:1])
        # The other seeds.
        for option in OPTIONS:
            if every_seed or self.is_promising(option, higher):
                yield from self._at_rate_of(BASE, option, higher, SEEDS[1:])
        if TOGETHER:
            yield from self._tuned(ALL, higher)

    def _tuned(self, option: str, higher: Mapping[str, bool]) -> Iterator[Job]:
        """Yield runs of an option at each rate, and at the best of them under the other seeds."""
        yield from (Job(task, option, rate, SEEDS[0]) for rate in RATES for task in higher)
        yield from self._at_rate_of(option, option, higher, SEEDS[1:])

    def _at_rate_of(self, tuned: str, option: str, higher: Mapping[str, bool], seeds: Sequence[int]) -> Iterator[Job]:
        """Yield runs of an option at the best rates of a tuned one."""
        best = {task: self.rate(task, tuned, up) for task, up in higher.items()}
        for seed, (task, rate) in product(seeds, best.items()):
            if rate is not None and self.step_seconds[task].get(option) is not None:
                yield Job(task, option, rate, seed)
