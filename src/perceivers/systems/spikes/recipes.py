"""Recipes of spikes."""

from collections.abc import Callable
from dataclasses import replace

from perceivers.data import SpikeTrains
from perceivers.runs.recipe import Recipe
from perceivers.systems.spikes.model import CONFIG, FOURIER_CONFIG, fourier_schema, schema
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig
from perceivers.training.training_config import TrainingConfig


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


RECIPES: dict[str, Callable[[], Recipe]] = {"spikes": recipe, "spikes-fourier": fourier}
"""Recipes by name on the command line."""
