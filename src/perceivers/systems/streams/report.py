"""The report of a run on streams: the error by hours ahead, and the error from the beginning of a stream on."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from perceivers.data import WeatherStreams
from perceivers.media.html_report import Report
from perceivers.runs.report import add_losses
from perceivers.runs.results import read_scores
from perceivers.runs.run import Run
from perceivers.systems.leads.baselines import deviations
from perceivers.systems.leads.report import add_errors
from perceivers.systems.streams.baselines import MODEL, average_forecast, baseline_scores, model_forecast
from perceivers.training.plots import subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(run: Run) -> Path:
    """Write the errors by hours ahead, and along the stream, of the model and the baselines, and the losses."""
    kept = read_scores(run.folder)
    scores = {name: each for name, each in kept.items() if MODEL in kept and name != "held out"} or baseline_scores(run)
    page = Report("A weather station, read a few hours at a time")
    carried = run.recipe.schema.stream is not None
    page.text(
        "The latents of each window begin the next one. " * carried
        + "Each window is read by itself. " * (not carried)
        + "The held-out stream is read once, from its beginning."
    )
    add_errors(page, scores)
    page.heading("Error along the stream")
    page.figure(
        draw_stream(run),
        "Root mean square error of all variables in units of std, over all hours ahead, by day of the held-out stream.",
    )
    add_losses(page, run)
    return page.write(run.folder / "report.html")


def draw_stream(run: Run) -> "Figure":
    """Draw the daily errors of the model and of the moving average from the first held-out day to the last."""
    data = run.recipe.data
    assert isinstance(data, WeatherStreams)
    guess, truth = model_forecast(run)
    figure, ((axes,),) = subplots(1, ["error by day"], side=5.0)
    for name, each in {"the model": guess, "moving average": average_forecast(data)}.items():
        squares = np.nanmean(((each - truth) / deviations(data).ravel()) ** 2, axis=(1, 2))
        days = np.array_split(squares, max(len(squares) * data.window // 24, 1))
        axes.plot([np.sqrt(np.nanmean(day)) for day in days], label=name)
    axes.set_xlabel("day of the held-out stream")
    axes.set_ylim(0)
    axes.legend()
    return figure
