"""Recipes of spikes: many sessions by rotary positions or by Fourier features of time; new sessions of a trained model.

`perceivers train spikes --out runs/spikes` takes about five minutes of CPU time. Expect an R2 of 0.76; ridge regression
of each session has 0.71. `spikes-fourier` has Fourier features of time in place of rotary positions: 0.77. Then
`perceivers train spikes-new --out runs/spikes-new` takes the model of runs/spikes (or of `--from`) to sessions with
units that it has never seen, from a minute of each: 0.73; ridge regression has 0.65.
"""

from collections.abc import Callable
from dataclasses import replace

from perceivers.data import SpikeTrains
from perceivers.runs.recipe import Recipe
from perceivers.systems.spikes.model import CONFIG, FOURIER_CONFIG, SHARED, fourier_schema, schema
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig
from perceivers.training.training_config import TrainingConfig

NEW = SpikeTrains(first_session=100, num_sessions=8, training_seconds=60)
"""New sessions, with a minute each to learn the embeddings of their units."""


def recipe() -> Recipe:
    """Return the recipe of POYO's model."""
    return Recipe(
        data=SpikeTrains(),
        schema=schema(),
        config=CONFIG,
        training=TrainingConfig(
            num_steps=2000,
            batch_size=32,
            optimiser=OptimiserConfig(kind="adamw", learning_rate=2e-3, weight_decay=0.01, max_norm=1.0),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=100),
        ),
    )


def fourier() -> Recipe:
    """Return the same recipe with Fourier features of time instead of rotary positions."""
    return replace(recipe(), schema=fourier_schema(), config=FOURIER_CONFIG)


def new_sessions() -> Recipe:
    """Return the recipe that trains embeddings of new units and sessions alone (POYO's unit identification)."""
    optimiser = OptimiserConfig(kind="adamw", learning_rate=1e-2, weight_decay=0.0, max_norm=1.0)
    schedule = ScheduleConfig(kind="cosine", warmup_steps=20)
    return Recipe(
        data=NEW,
        schema=schema(),
        config=CONFIG,
        training=TrainingConfig(num_steps=400, batch_size=32, optimiser=optimiser, schedule=schedule),
        start_from="runs/spikes",
        freeze=SHARED,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "spikes": recipe,
    "spikes-fourier": fourier,
    "spikes-new": new_sessions,
}
"""Recipes by name on the command line."""
