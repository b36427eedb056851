"""Recipes of optical flow (paper section H).

`perceivers train flow --out runs/flow`: synthetic scenes of 48 x 64 pixels, convolutional stem with convex upsampling;
20 minutes on two cores. Expect two thirds of the error of predicting no motion (docs/results.md). `flow-3x3`,
`flow-1x1`, `flow-conv`, each also with `-separate`: the paper's variants (Table 16) on scenes of 24 x 32 pixels, 5
minutes each. `flow-paper`: the paper's run on AutoFlow, for about 64 accelerators.
"""

from collections.abc import Callable
from functools import partial
from typing import get_args

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.data import FlowPairs, FlowScenes
from perceivers.data.published.flow_curriculum import FlowCurriculum
from perceivers.runs.recipe import Recipe
from perceivers.systems.optical_flow.model import Variant, flow_schema, optical_flow
from perceivers.training.loop import TrainingConfig
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig


def paper(variant: Variant = "3x3") -> Recipe:
    """Return the paper's training on AutoFlow, in the folder `autoflow`: 480 epochs, 400,000 pairs (40,000 are public).

    Ours, where the paper is silent: loss (distance), weight decay, clipping, no warm-up, lengths of the phases.
    """
    preset = optical_flow(variant=variant)
    num_steps, batch_size = 375_000, 512
    return Recipe(
        data=FlowPairs(folder="autoflow", curriculum=FlowCurriculum(num_records=num_steps * batch_size)),
        schema=preset.schema,
        config=preset.config,
        training=TrainingConfig(
            num_steps=num_steps,
            batch_size=batch_size,
            shuffle=False,  # the curriculum depends on the number of the record
            optimiser=OptimiserConfig(kind="lamb", learning_rate=4e-4, weight_decay=0.01, max_norm=10.0),
            schedule=ScheduleConfig(kind="cosine"),
            num_workers=16,
        ),
    )


def small() -> Recipe:
    """Return the recipe of 20 minutes on two cores, one of which renders scenes; no scene is used twice."""
    data = FlowScenes(size=(48, 64), num_training=112_000)
    return _small("conv", data, (64, 96), layers=3, learning_rate=1.5e-3)


def side_by_side(variant: Variant) -> Recipe:
    """Return one of the paper's variants, on scenes so small that 40,000 take 5 minutes even with pixel tokens."""
    data = FlowScenes(size=(24, 32), num_training=40_000, motion=1.5)
    return _small(variant, data, (32, 64), layers=2, learning_rate=1e-3)


def _small(
    variant: Variant, data: FlowScenes, latents: tuple[int, int], layers: int, learning_rate: float, batch_size: int = 8
) -> Recipe:
    return Recipe(
        data=data,
        schema=flow_schema(variant, data.size, num_bands=16),
        config=Config(
            latents=LatentsConfig(*latents),
            encoder=EncoderConfig(),
            processor=ProcessorConfig(num_heads=4, num_layers=layers),
            decoder=DecoderConfig(query_residual=True, widening_factor=2),
        ),
        training=TrainingConfig(
            num_steps=data.num_training // batch_size,
            batch_size=batch_size,
            optimiser=OptimiserConfig(kind="adamw", learning_rate=learning_rate, weight_decay=0.01, max_norm=1.0),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=200),
            log_every=50,
            num_workers=1,
        ),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "flow": small,
    "flow-paper": paper,
    **{f"flow-{variant}": partial(side_by_side, variant) for variant in get_args(Variant)},
}
"""Recipes by name on the command line."""
