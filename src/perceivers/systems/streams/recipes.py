"""The recipes of sensors as streams, with and without a state that is carried from window to window.

Run: `perceivers train streams --out runs/streams` (about seven minutes on a core). Expect a root mean square error of
0.25 one reading ahead and of 0.32 eight readings ahead; without a state 0.39 and 0.52.
"""

from collections.abc import Callable
from dataclasses import replace

from perceivers.data import SensorStreams
from perceivers.runs.recipe import Recipe
from perceivers.systems.streams.model import CONFIG, schema
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig
from perceivers.training.training_config import TrainingConfig

UNROLL = 16
"""Number of windows of a training example."""


def streams() -> Recipe:
    """Return the recipe whose latents are carried from window to window."""
    data = SensorStreams()
    return Recipe(
        data=data,
        schema=schema(data, carry=True),
        config=CONFIG,
        training=TrainingConfig(
            num_steps=800,
            batch_size=16,
            unroll=UNROLL,
            optimiser=OptimiserConfig(kind="adamw", learning_rate=1e-3, weight_decay=0.05, max_norm=1.0),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=50),
            average_decay=0.99,
        ),
    )


def stateless() -> Recipe:
    """Return the same recipe without a state: as many windows a step, each read by itself."""
    recipe = streams()
    training = replace(recipe.training, unroll=1, batch_size=UNROLL * recipe.training.batch_size)
    return replace(recipe, schema=replace(recipe.schema, stream=None), training=training)


RECIPES: dict[str, Callable[[], Recipe]] = {"streams": streams, "streams-stateless": stateless}
"""Recipes by name on the command line."""
