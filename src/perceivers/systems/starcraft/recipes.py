"""Recipes of StarCraft II: prediction of masked unit types and of the statistics of both players, on replays.

`perceivers train starcraft --out runs/starcraft --set data.folder=REPLAYS` takes three minutes on two cores. Expect
half of the types right; the most frequent type is right in a fifth. `starcraft-transformer` has a Transformer in place
of the encoder.
"""

from collections.abc import Callable
from dataclasses import replace

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.data import StarCraft
from perceivers.runs.recipe import Recipe
from perceivers.systems.starcraft.model import ENCODER, TRANSFORMER, schema
from perceivers.training.loop import TrainingConfig
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig

SMALL = Config(
    latents=LatentsConfig(num_latents=32, channels=64),
    encoder=EncoderConfig(num_heads=4),
    processor=ProcessorConfig(num_heads=4, num_layers=3),
    decoder=DecoderConfig(num_heads=4, query_residual=True),
)
"""A model that two cores train in minutes."""


def paper() -> Recipe:
    """Return the paper's encoder on masked types (ours), with ImageNet's hyperparameters (section B states none)."""
    steps = 137_625
    return Recipe(
        data=StarCraft(),
        schema=schema(),
        config=ENCODER,
        training=TrainingConfig(
            num_steps=steps,
            batch_size=1024,
            optimiser=OptimiserConfig(kind="lamb", learning_rate=2e-3, weight_decay=0.1, max_norm=10.0),
            schedule=ScheduleConfig(kind="constant_cosine"),
            num_workers=8,
        ),
    )


def small() -> Recipe:
    """Return a recipe of three epochs; after more, the model memorises the statistics of the training games."""
    return Recipe(
        data=StarCraft(),
        schema=schema(),
        config=SMALL,
        training=TrainingConfig(
            num_steps=800,
            batch_size=16,
            optimiser=OptimiserConfig(kind="adamw", learning_rate=2e-3, weight_decay=0.01, max_norm=1.0),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=100),
        ),
    )


def transformer() -> Recipe:
    """Return the small recipe with AlphaStar's Transformer layers in place of the encoder, at the same width."""
    latents = LatentsConfig(channels=SMALL.latents.channels)
    return replace(small(), config=Config(latents, EncoderConfig(), TRANSFORMER, SMALL.decoder, trunk="transformer"))


RECIPES: dict[str, Callable[[], Recipe]] = {
    "starcraft": small,
    "starcraft-transformer": transformer,
    "starcraft-paper": paper,
}
"""Recipes by name on the command line."""
