"""The report of a run on optical flow."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from perceivers.media.drawing import show_image
from perceivers.media.flow_colours import colour_wheel, flow_colours
from perceivers.media.html_report import Report
from perceivers.runs.recipe import load_run
from perceivers.runs.report import SHOWN, add_losses, add_scores, subplots
from perceivers.schema import Record
from perceivers.systems.optical_flow.baselines import as_bytes, baselines, by_model, no_motion

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(run: Path) -> Path:
    """Write scores beside the baselines', and flow beside the truth, colours of one scale in each row."""
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
    """Draw a row for each pair: frames, true flow, written flow, the baselines', the legend."""
    estimators = {name: estimate for name, estimate in baselines().items() if estimate is not no_motion}
    figure, axes = subplots(len(records), ["first", "second", "true", "written", *estimators, "legend"])
    for row, record, written in zip(axes, records, flows, strict=True):
        frames = as_bytes(record["frames"])
        full = float(np.nanmax(np.hypot(*np.moveaxis(record["flow"], -1, 0)), initial=1e-6))
        shown = [record["flow"], written, *(estimate(frames) for estimate in estimators.values())]
        pictures = [*frames / 255, *(flow_colours(flow, full) for flow in shown), colour_wheel()]
        for cell, picture in zip(row, pictures, strict=True):
            show_image(cell, picture, (0.0, 1.0))
    return figure
