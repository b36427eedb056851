"""The report of a run on lead times: the error by lead time, and forecasts from one encoding."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from perceivers.data import WeatherLeads
from perceivers.data.published.nyc_weather import AIRPORTS, UNITS, last_known
from perceivers.media.html_report import Report
from perceivers.runs.report import add_errors_by_lead, add_losses, scores_by_lead
from perceivers.runs.run import Run
from perceivers.systems.leads.baselines import MODEL, baseline_scores, held_out_hours, model_forecast
from perceivers.training.plots import subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DAYS = 4
"""Number of forecasts that are drawn."""


def report(run: Run) -> Path:
    """Write the errors by lead time of the model and the baselines, forecasts beside the truth, and the losses."""
    scores = scores_by_lead(run, MODEL) or baseline_scores(run)
    page = Report("The weather at any lead time, from one encoding of the past")
    page.text("A past is encoded once and decoded at each lead time. These hours are held out: the last of the year.")
    add_errors_by_lead(page, scores)
    page.heading("Forecasts")
    page.figure(
        draw_forecasts(run),
        "Each row is one encoded past: the true values until then (black) and after (grey), and the forecast at every "
        "hour (red), also at lead times between those that are scored.",
    )
    add_losses(page, run)
    return page.write(run.folder / "report.html")


def draw_forecasts(run: Run) -> "Figure":
    """Draw a row for each of some held-out hours: three variables of one airport, until now and later."""
    data = run.recipe.data
    assert isinstance(data, WeatherLeads)
    hours = held_out_hours(data)
    nows = hours[np.linspace(0, len(hours) - 1, DAYS).astype(int)]
    leads = range(1, max(data.leads) + 1)
    found = model_forecast(run.model.cpu(), data, nows, leads)
    table, (filled, _) = data.weather().values, last_known(data.weather().values)
    shown = [0, 1, 4]
    names = list(UNITS)
    titles = [f"{names[number]} [{UNITS[names[number]]}], {AIRPORTS[1]}" for number in shown]
    figure, axes = subplots(DAYS, titles, side=3.2)
    for row, now in enumerate(nows):
        for axis, variable in zip(axes[row], shown, strict=True):
            column = len(UNITS) + variable
            before, after = np.arange(-data.past + 1, 1), np.array(leads)
            axis.plot(before, table[now + before, 1, variable], color="black", linewidth=1)
            axis.plot(after, table[now + after, 1, variable], color="grey", linewidth=1)
            axis.plot(after, filled[now, column] + found[row, :, column], color="tab:red", linewidth=1.5)
            axis.axvline(0, color="black", linewidth=0.5)
            axis.set_xlabel("hours from now")
    return figure
