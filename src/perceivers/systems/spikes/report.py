"""The report of a run on spikes: scores, windows with their decoded velocities, and preferred directions."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from perceivers.core.perceiver import PerceiverIO
from perceivers.data import SpikeTrains
from perceivers.data.spike_trains import KINDS, Session
from perceivers.media.html_report import Report
from perceivers.modalities.fields import CategoryEncoding, CategoryField
from perceivers.modalities.records import RecordsInput
from perceivers.runs.report import add_losses, add_score_table, predict
from perceivers.runs.run import Run
from perceivers.schema import Record, Schema
from perceivers.systems.spikes.baselines import parts_of, ridge
from perceivers.training.plots import subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 4
"""Number of windows in a report."""

FOLDS, PENALTY = 5, 1.0
"""Parts of the cross-validation of preferred directions, and the penalty of its regression on embeddings."""


def report(run: Run) -> Path:
    """Write scores, windows of the first session with their decoded velocities, and preferred directions."""
    data, model = run.recipe.data, run.model.cpu()
    assert isinstance(data, SpikeTrains)
    page = Report(f"Spikes: run {run.folder.name}")
    page.text(
        f"{data.num_sessions} simulated sessions with units of their own; windows of one second. Training windows come "
        f"from the first {data.training_seconds} seconds of each session, held-out windows from the last "
        f"{data.held_out_seconds}."
    )
    add_score_table(page, run)
    # Windows of the first session, evenly spaced.
    session = data.session(0)
    windows = [record for record in run.held_out if record["session"] == session.name]
    windows = windows[:: max(len(windows) // SHOWN, 1)][:SHOWN]
    training = [record for record in data.apart().training() if record["session"] == session.name]
    page.heading("Held-out windows of the first session")
    page.figure(
        draw_windows(run.recipe.schema, model, session, windows, training),
        "Spikes, a row and a colour for each unit, sorted and coloured by preferred direction; both components of the "
        "velocity in cm/s: true (black), decoded by the model (red), ridge regression of this session (grey).",
    )
    page.heading("Preferred directions")
    true, found = preferred_directions(model, data)
    error = np.degrees(np.abs(np.angle(np.exp(1j * (found - true)))))
    page.figure(
        draw_directions(true, found),
        f"Each dot is a tuned unit: its preferred direction, and the one that a linear map finds in its trained "
        f"embedding. The map is fitted to the other units ({FOLDS}-fold cross-validation). Median error "
        f"{np.median(error):.0f} degrees; 90 would be chance.",
    )
    add_losses(page, run)
    return page.write(run.folder / "report.html")


def draw_windows(
    schema: Schema, model: PerceiverIO, session: Session, windows: list[Record], training: list[Record]
) -> "Figure":
    """Draw a column for each window of a session: spikes, then both components of the velocity."""
    from matplotlib import colormaps

    _, predictions = predict(model, schema, windows)
    sessions = {session.name: session}
    (learned,), (shown,) = (list(parts_of(records, sessions).values()) for records in (training, windows))
    guesses = {"red": predictions["velocity"].numpy(), "0.6": ridge(learned, shown.counts)}
    ranks = np.argsort(np.argsort(session.tuning.preferred))
    places = dict(zip(session.units.tolist(), ranks.tolist(), strict=True))
    figure, axes = subplots(3, [f"window {number + 1}" for number in range(len(windows))], side=2.6)
    for number, record in enumerate(windows):
        raster, *components = (row[number] for row in axes)
        spikes = record["spikes"]["kind"] == KINDS[0]
        rows = np.array([places[unit] for unit in record["spikes"]["unit"][spikes].tolist()])
        raster.scatter(record["spikes"]["time"][spikes], rows, s=6, marker="|", c=colormaps["hsv"](rows / len(ranks)))
        raster.set(xlim=(0, 1), ylim=(-1, len(ranks)))
        times, largest = record["velocity"]["coordinates"][:, 0], np.abs(shown.velocities).max() * 1.1
        for side, axis in enumerate(components):
            for colour, guess in guesses.items():
                axis.plot(times, guess[number, :, side], color=colour, linewidth=1)
            axis.plot(times, record["velocity"]["values"][:, side], color="black", linewidth=1)
            axis.set(xlim=(0, 1), ylim=(-largest, largest))
    for row, label in zip(axes, ("unit", "velocity to the right", "velocity upwards"), strict=True):
        row[0].set_ylabel(label)
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    return figure


def preferred_directions(
    model: PerceiverIO, data: SpikeTrains
) -> tuple[Float[np.ndarray, " u"], Float[np.ndarray, " u"]]:
    """Return the preferred directions of all tuned units, and those found in their embeddings by the other units."""
    # Gather the embedding and the true direction of each tuned unit.
    sessions = data.sessions()
    tuned = np.concatenate([session.tuning.tuned for session in sessions])
    directions = np.concatenate([session.tuning.directions for session in sessions])[tuned]
    embeddings = embeddings_of(model, np.concatenate([session.units for session in sessions])[tuned])
    x = (embeddings - embeddings.mean(0)) / embeddings.std()
    # Predict each fold of the units from the others.
    folds, found = np.random.default_rng(0).permutation(len(x)) % FOLDS, np.empty_like(directions)
    for fold in range(FOLDS):
        others, own = x[folds != fold], x[folds == fold]
        gram = others.T @ others + PENALTY * np.eye(x.shape[1])
        found[folds == fold] = own @ np.linalg.solve(gram, others.T @ directions[folds != fold])
    true_angles, angles = (np.arctan2(each[:, 1], each[:, 0]) for each in (directions, found))
    return true_angles, angles


def embeddings_of(model: PerceiverIO, units: np.ndarray) -> Float[np.ndarray, "u c"]:
    """Return the trained embeddings of units by name."""
    adapter = dict(model.input_adapter.adapters.named_children())["spikes"]
    assert isinstance(adapter, RecordsInput)
    field, encoding = adapter.spec.fields["unit"], adapter.encodings.fields[list(adapter.spec.features).index("unit")]
    assert isinstance(field, CategoryField)
    assert isinstance(encoding, CategoryEncoding)
    numbers = torch.from_numpy(field.preprocess(units))
    with torch.no_grad():
        return encoding(numbers[None])[0].double().numpy()


def draw_directions(true: Float[np.ndarray, " u"], found: Float[np.ndarray, " u"]) -> "Figure":
    """Draw found directions over true ones."""
    figure, ((axes,),) = subplots(1, ["preferred directions [degrees]"], side=4.0)
    axes.scatter(np.degrees(true), np.degrees(found), s=6, c="black")
    axes.plot([-180, 180], [-180, 180], color="0.6", linewidth=1)
    axes.set(xlabel="true", ylabel="found in the embedding", xlim=(-180, 180), ylim=(-180, 180), aspect="equal")
    return figure
