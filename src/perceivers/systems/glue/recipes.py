"""Recipes of GLUE: fine-tuning on one task or on several at once (paper section 4.1 and F.4, Tables 1, 2 and 14).

`perceivers train glue-sst-2 --out runs/sst-2 --set data.folder=glue`, and `glue-cola`, `glue-sts`, `glue-vader`: one
task, decoded with one trained query; 5 minutes on two cores, from scratch or `--from RUN` of the small byte model.
`glue-shared-token`, `glue-task-tokens`, `glue-task-queries`: CoLA, SST-2 and STS at once, as Table 2 compares them.

`glue-paper-cola` ... `glue-paper-sts`, and the three variants for all eight tasks (`glue-paper-task-queries`): the
paper's runs, to be started `--from` the byte model. The paper takes the best of batch sizes 16, 32 and 64 and learning
rates 1e-4, 5e-5, 2e-5 and 1e-5, over 10 epochs: `--set training.batch_size=16 training.optimiser.learning_rate=1e-4
training.num_steps=...`. Ours, where the paper is silent: the cosine after the warm-up, no clipping, how two sentences
are joined (`glue_tables.BETWEEN`), truncation, tasks sampled by size and weighted equally, and task tokens as queries.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import get_args

from perceivers.data import Glue
from perceivers.data.published.glue_tables import Task
from perceivers.modalities import Text
from perceivers.runs.recipe import Recipe
from perceivers.schema import find_modality
from perceivers.systems.glue.model import Variant, glue_schema
from perceivers.systems.language import recipes as language_recipes
from perceivers.systems.language.model import language
from perceivers.training.loop import TrainingConfig
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig

EXAMPLES: dict[Task, int] = {
    "cola": 8551,
    "mnli": 392_702,
    "mrpc": 3668,
    "qnli": 104_743,
    "qqp": 363_846,
    "rte": 2490,
    "sst_2": 67_349,
    "sts": 5749,
}
"""Number of training examples of each task."""

MIXED: tuple[Task, ...] = ("cola", "sst_2", "sts")
"""Tasks of the small recipes of several tasks."""


def paper(tasks: Sequence[Task], variant: Variant = "task-queries") -> Recipe:
    """Return the recipe of the paper's model and 10 epochs, at one point of the paper's grid of settings."""
    preset, batch_size = language(), 32
    _, text = find_modality(preset.schema.inputs, Text)
    return Recipe(
        data=Glue(tasks=tuple(tasks)),
        schema=glue_schema(tasks, replace(text, mask_words=0.0, overflow="truncate"), variant),
        config=preset.config,
        training=TrainingConfig(
            num_steps=10 * sum(EXAMPLES[task] for task in tasks) // batch_size,
            batch_size=batch_size,
            optimiser=OptimiserConfig(kind="lamb", learning_rate=5e-5, weight_decay=0.01, max_norm=None),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=200),
            num_workers=4,
        ),
    )


def small(tasks: Sequence[Task], variant: Variant = "task-queries", num_steps: int = 2500) -> Recipe:
    """Return a recipe for the small byte model (`perceivers train language`); 5 minutes on two cores."""
    byte_model = language_recipes.small()
    text = language_recipes.text_of(byte_model.schema)
    text = replace(text, mask_words=0.0, mask_at_eval=False, overflow="truncate")
    return Recipe(
        data=Glue(tasks=tuple(tasks)),
        schema=glue_schema(tasks, text, variant),
        config=byte_model.config,
        training=TrainingConfig(
            num_steps=num_steps,
            batch_size=16,
            optimiser=OptimiserConfig(kind="adamw", learning_rate=5e-4, weight_decay=0.01, max_norm=1.0),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=100),
        ),
    )


def called(task: Task) -> str:
    """Return the name of a task on the command line."""
    return task.replace("_", "-")


RECIPES: dict[str, Callable[[], Recipe]] = {
    **{f"glue-{called(task)}": partial(small, (task,)) for task in ("cola", "sst_2", "vader")},
    "glue-sts": partial(small, ("sts",), num_steps=1000),  # about ten epochs of 1,500 pairs
    **{f"glue-{variant}": partial(small, MIXED, variant) for variant in get_args(Variant)},
    **{f"glue-paper-{called(task)}": partial(paper, (task,)) for task in EXAMPLES},
    **{f"glue-paper-{variant}": partial(paper, tuple(EXAMPLES), variant) for variant in get_args(Variant)},
}
"""Recipes by name on the command line."""
