"""The report of a run on streams: the error by steps ahead, and along a stream, and predictions beside the signal."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from perceivers.data import SensorStreams
from perceivers.media.html_report import Report
from perceivers.runs.report import add_errors_by_lead, add_losses, scores_by_lead
from perceivers.runs.run import Run
from perceivers.systems.streams.baselines import MODEL, Forecast, baseline_scores, by_sensor, forecasts, signals
from perceivers.training.plots import subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 60
"""Windows of a stream that are drawn, from its beginning."""


def report(run: Run) -> Path:
    """Write the errors by steps ahead, and along the streams, of the model and the baselines, and the losses."""
    scores = scores_by_lead(run, MODEL) or baseline_scores(run)
    page = Report("Sensors, read a few readings at a time")
    carried = (
        "The latents of each window begin the next one." if run.recipe.schema.stream else "Each window stands alone."
    )
    page.text(f"{carried} These sensors are held out; each stream is read once, from its beginning.")
    add_errors_by_lead(page, scores)
    found = forecasts(run)
    page.heading("From the beginning of a stream on")
    page.figure(
        draw_start(run, found),
        "Left: root mean square error over all sensors and steps ahead, window by window. Right: readings of a sensor "
        "(dots), the signal without noise (grey), and what was predicted four readings before (red).",
    )
    add_losses(page, run)
    return page.write(run.folder / "report.html")


def draw_start(run: Run, found: dict[str, Forecast]) -> "Figure":
    """Draw the error of each window of the streams, and one sensor from its beginning."""
    data, truth = run.recipe.data, signals(run.held_out)
    assert isinstance(data, SensorStreams)
    figure, ((left, right),) = subplots(1, ["error by window", "one sensor"], side=5.0)
    for name, guess in found.items():
        left.plot(np.sqrt(np.mean((guess - truth) ** 2, axis=(0, 2, 3)))[:SHOWN], label=name)
    left.set_xlabel("window of the stream")
    left.set_ylim(0)
    left.legend()
    step = min(4, data.ahead)
    count = min(SHOWN, truth.shape[1])
    readings = by_sensor(run.held_out, "past")[0, :count, :, 0].ravel()
    times = (np.arange(count) + 1) * data.window + step - 1
    right.plot(readings, ".", color="black", markersize=2)
    right.plot(times, truth[0, :count, step - 1, 0], color="grey")
    right.plot(times, found[MODEL][0, :count, step - 1, 0], color="tab:red")
    right.set_xlabel("reading")
    return figure
