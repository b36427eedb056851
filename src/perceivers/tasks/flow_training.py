"""Training optical flow (paper section H).

`perceivers train flow --out runs/flow`: made-up scenes of 48 x 64 pixels, convolutional stem with convex upsampling;
20 minutes on two cores; expect two thirds of the error of no motion (docs/results.md). `flow-3x3`, `flow-1x1`,
`flow-conv`, each also `-separate`: the paper's variants (table 16) on scenes of 24 x 32 pixels, 5 minutes each.
`flow-paper`: the paper's run, on AutoFlow, for 64 accelerators or so.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from jaxtyping import Float

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.data import FlowPairs, FlowScenes
from perceivers.data.published.flow_curriculum import FlowCurriculum
from perceivers.media.drawing import show_image
from perceivers.media.flow_colours import colour_wheel, flow_colours
from perceivers.media.html_report import Report
from perceivers.schema import Record
from perceivers.tasks.flow_scores import as_bytes, by_model, no_motion, rivals, scores_of
from perceivers.tasks.optical_flow import Variant, flow_schema, optical_flow
from perceivers.tasks.recipe import Recipe, load_run
from perceivers.tasks.report import SHOWN, add_losses, add_scores, subplots
from perceivers.training.loop import TrainingConfig
from perceivers.training.metrics import Scores
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def paper(variant: Variant = "3x3") -> Recipe:
    """The paper's models on AutoFlow, in the folder `autoflow`: 480 epochs of 400,000 pairs (40,000 are public).

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
            shuffle=False,  # the curriculum goes by the number of the record
            optimiser=OptimiserConfig(kind="lamb", learning_rate=4e-4, weight_decay=0.01, max_norm=10.0),
            schedule=ScheduleConfig(kind="cosine"),
            num_workers=16,
        ),
    )


def small() -> Recipe:
    """The headline: what two cores learn in 20 minutes, one of them making scenes that are never seen twice."""
    data = FlowScenes(size=(48, 64), num_training=112_000)
    return _small("conv", data, (64, 96), layers=3, learning_rate=1.5e-3)


def side_by_side(variant: Variant) -> Recipe:
    """One of the paper's variants, on scenes so small that pixels as tokens see 40,000 of them in 5 minutes."""
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
"""By name on the command line."""


def further_scores(run: Path) -> dict[str, Scores]:
    """Each rival's scores on the records that a run is evaluated on."""
    recipe, _ = load_run(run)
    return scores_of(rivals(), recipe.data.held_out(), recipe.schema)


def report(run: Path) -> Path:
    """Scores beside the rivals', and flow beside the truth, colours of one scale in each row."""
    recipe, model = load_run(run)
    page = Report(f"Optical flow: run {run.name}")
    add_scores(page, run)
    records = recipe.data.held_out()[:SHOWN]
    page.heading("Held-out pairs")
    page.figure(
        draw_flows(records, [by_model(model, as_bytes(record["frames"])) for record in records]),
        "Hue is direction, as the wheel shows it; saturation is distance, a row's truth at most 1.",
    )
    add_losses(page, run)
    return page.write(run / "report.html")


def draw_flows(records: Sequence[Record], flows: Sequence[Float[np.ndarray, "_ _ 2"]]) -> "Figure":
    """A row for each pair: frames, true flow, written flow, the rivals', the legend."""
    estimators = {name: estimate for name, estimate in rivals().items() if estimate is not no_motion}
    figure, axes = subplots(len(records), ["first", "second", "true", "written", *estimators, "legend"])
    for row, record, written in zip(axes, records, flows, strict=True):
        frames = as_bytes(record["frames"])
        full = float(np.nanmax(np.hypot(*np.moveaxis(record["flow"], -1, 0)), initial=1e-6))
        shown = [record["flow"], written, *(estimate(frames) for estimate in estimators.values())]
        pictures = [*frames / 255, *(flow_colours(flow, full) for flow in shown), colour_wheel()]
        for cell, picture in zip(row, pictures, strict=True):
            show_image(cell, picture, (0.0, 1.0))
    return figure
