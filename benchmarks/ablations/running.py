"""Runs of the ablations: the time that a step takes, and the score after a number of steps.

A clock only decides, once for each task and option, how many steps make four minutes of one thread. From then on the
steps decide the score, so that a run gives the same score on a busy machine, or when it is interrupted and continued.
"""

import os
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.ablations.options import BASE, TOGETHER, with_options
from benchmarks.ablations.tasks import TASKS, Task
from perceivers.data.validation import Parts, read_parts
from perceivers.progress import tracked
from perceivers.runs.evaluate import evaluate_run
from perceivers.runs.recipe import Recipe, preset_of
from perceivers.runs.train import run_recipe
from perceivers.schema import Batch
from perceivers.training.losses import Objective
from perceivers.training.optimisers import build_optimiser
from perceivers.training.sampler import BatchOrder, training_batches

TURNS, STEPS = 8, 4
"""Turns in which the paper's block and an option are measured one after the other, and steps of each in a turn."""

ALL = "together"
"""Name of the options that helped, all at once."""


@dataclass(frozen=True)
class Job:
    """A training run."""

    task: str
    """Name of the task."""
    option: str
    """Name of the option, or ALL."""
    rate: float
    """Learning rate."""
    seed: int
    """Seed of everything."""


def recipe_of(task: Task, option: str) -> Recipe | None:
    """Return a task's recipe with an option, or with all that helped; None if the option has no meaning there."""
    return with_options(task, TOGETHER if option == ALL else (option,))


def pin(core: int) -> None:
    """Run this process on one core, with one thread."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)


def step_seconds(folder: Path, name: str, options: Sequence[str]) -> dict[str, float | None]:
    """Return the CPU seconds that a training step of each option takes, including those for its batch.

    An option and the paper's block take turns, and the median of their ratios counts. None: it has no meaning there.
    """
    task = TASKS[name](folder)
    parts = read_parts(task.recipe.data, task.recipe.schema)
    base = Stepper(task.recipe, parts)
    own = [base.seconds() / STEPS for _ in range(TURNS)]
    found: dict[str, float | None] = {BASE: base.batch_seconds + statistics.median(own)}
    for option in tracked(options, f"steps of {name}"):
        recipe = recipe_of(task, option)
        if recipe is None:
            found[option] = None
        elif option != BASE:
            same = recipe.schema == task.recipe.schema
            other = Stepper(recipe, parts if same else read_parts(recipe.data, recipe.schema))
            ratios = [other.seconds() / base.seconds() for _ in range(TURNS)]
            found[option] = other.batch_seconds + statistics.median(ratios) * statistics.median(own)
    return found


class Stepper:
    """A model in training, of which some steps can be made and timed."""

    def __init__(self, recipe: Recipe, parts: Parts) -> None:
        model = preset_of(replace(recipe, schema=parts.schema)).build()
        self.objective = Objective(model).train()
        self.optimiser = build_optimiser(model, recipe.training.optimiser)
        order = BatchOrder(0, len(parts.training), recipe.training.batch_size, 0, 2 * STEPS)
        begin = time.process_time()
        batches = list(training_batches(parts.schema, parts.training, order))
        self.batch_seconds = (time.process_time() - begin) / len(batches)
        self.batches = cycle(batches)
        self.seconds()  # the first steps take longer

    def seconds(self) -> float:
        """Make STEPS steps; return the CPU seconds that they took."""
        begin = time.process_time()
        for batch in islice(self.batches, STEPS):
            self.step(batch)
        return time.process_time() - begin

    def step(self, batch: Batch) -> None:
        """Make one step, as the training loop does."""
        loss = torch.stack(list(self.objective(batch).values())).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(self.objective.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()


def run(folder: Path, runs: Path, job: Job, steps: int) -> dict[str, Any]:
    """Train and score one run, from where it was interrupted if it was; return its score and CPU seconds."""
    begin = time.process_time()
    task = TASKS[job.task](folder)
    recipe = recipe_of(task, job.option)
    assert recipe is not None
    optimiser = replace(recipe.training.optimiser, learning_rate=job.rate)
    training = replace(recipe.training, num_steps=steps, seed=job.seed, optimiser=optimiser)
    path = runs / f"{job.task}-{job.option}-{job.rate:g}-{job.seed}"
    scores = evaluate_run(run_recipe(replace(recipe, training=training), path))
    output, metric = task.score
    score = scores["held out"][output][metric]
    shutil.rmtree(path)
    return {"score": score, "cpu_seconds": round(time.process_time() - begin, 1)}
