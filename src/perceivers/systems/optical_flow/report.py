"""The report of a run on optical flow."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from perceivers.media.drawing import show_image
from perceivers.media.flow_colours import colour_wheel, flow_colours
from perceivers.media.html_report import Report
from perceivers.runs.report import SHOWN, add_losses, add_score_table, subplots
from perceivers.runs.run import Run
from perceivers.schema import Record
from perceivers.systems.optical_flow.baselines import as_bytes, baselines, by_model, no_motion

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(run: Run) -> Path:
    """Write scores with those of the baselines, and held-out pairs with true and predicted flow."""
    page = Report(f"Optical flow: run {run.folder.name}")
    add_score_table(page, run)
    records = run.held_out[:SHOWN]
    page.heading("Held-out pairs")
    page.figure(
        draw_flows(records, [by_model(run.model, as_bytes(record["frames"])) for record in records]),
        "Hue is direction, as on the wheel; saturation is distance, 1 at the largest true distance of each row.",
    )
    add_losses(page, run)
    return page.write(run.folder / "report.html")


def draw_flows(records: Sequence[Record], flows: Sequence[Float[np.ndarray, "_ _ 2"]]) -> "Figure":
    """Draw a row for each pair: frames, true flow, predicted flow, flow of each baseline, legend."""
    estimators = {name: estimate for name, estimate in baselines().items() if estimate is not no_motion}
    figure, axes = subplots(len(records), ["first", "second", "true", "predicted", *estimators, "legend"])
    for row, record, predicted in zip(axes, records, flows, strict=True):
        frames = as_bytes(record["frames"])
        # One colour scale for all flows of a row.
        full = float(np.nanmax(np.hypot(*np.moveaxis(record["flow"], -1, 0)), initial=1e-6))
        shown = [record["flow"], predicted, *(estimate(frames) for estimate in estimators.values())]
        pictures = [*frames / 255, *(flow_colours(flow, full) for flow in shown), colour_wheel()]
        for cell, picture in zip(row, pictures, strict=True):
            show_image(cell, picture, (0.0, 1.0))
    return figure
