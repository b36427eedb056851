"""Predictions of a sensor by steps ahead: the model, persistence, and exponential moving averages of its past.

Letters: s sensors, w windows, h steps ahead; two readings each. Errors are those from the signal without its noise.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from perceivers.data import SensorStreams
from perceivers.runs.report import predict
from perceivers.runs.run import Run
from perceivers.schema import Record
from perceivers.training.metrics import Scores

STEPS = (1, 2, 4, 8)
"""Steps ahead whose errors are scored."""

HALF_LIVES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Half-lives of the moving averages, in readings; the training part chooses one for each step ahead."""

MODEL = "the model by steps ahead"
"""Name of the model's own scores."""

Forecast = Float[np.ndarray, "s w h 2"]
"""Predictions of the readings after each window."""


def baseline_scores(run: Run) -> dict[str, Scores]:
    """Return the errors by steps ahead of the model and of the baselines on the held-out streams."""
    truth = signals(run.held_out)
    return {name: errors(guess, truth) for name, guess in forecasts(run).items()}


def forecasts(run: Run) -> dict[str, Forecast]:
    """Return the predictions of the model and of the baselines on the held-out streams, by name."""
    data = run.recipe.data
    assert isinstance(data, SensorStreams)
    _, predictions = predict(run.model.cpu(), run.recipe.schema, run.held_out)
    past = by_sensor(run.held_out, "past")
    last = np.broadcast_to(past[:, :, -1:], (*past.shape[:2], data.ahead, 2))
    found = predictions["later"].numpy().reshape(last.shape)
    return {MODEL: found, "persistence": last, "moving average": average_forecast(run.training, past)}


def average_forecast(training: Sequence[Record], past: np.ndarray) -> Forecast:
    """Predict a moving average of all readings of a sensor until then, whose half-life suits the step ahead."""
    before, later = by_sensor(training, "past"), by_sensor(training, "later")
    guesses = [moving_average(before, half_life)[:, :, None] for half_life in HALF_LIVES]
    losses = [np.mean((guess - later) ** 2, axis=(0, 1, 3)) for guess in guesses]  # [h]
    averages = np.stack([moving_average(past, half_life) for half_life in HALF_LIVES])
    return np.moveaxis(averages[np.argmin(losses, axis=0)], 0, 2)


def moving_average(past: np.ndarray, half_life: float) -> np.ndarray:
    """Return the exponential moving average after each window [s, w, 2] of readings [s, w, window, 2]."""
    keep = 0.5 ** (1 / half_life) if half_life else 0.0
    readings = np.moveaxis(past.reshape(len(past), -1, past.shape[-1]), 1, 0)
    average, found = readings[0], []
    for reading in readings:
        average = keep * average + (1 - keep) * reading
        found.append(average)
    return np.stack(found[past.shape[2] - 1 :: past.shape[2]], 1)


def errors(guess: np.ndarray, truth: np.ndarray) -> Scores:
    """Return the root mean square error at each of `STEPS` ahead, as far as the predictions go."""
    by_step = np.sqrt(np.mean((guess - truth) ** 2, axis=(0, 1, 3)))
    return {"signal": {f"{step} ahead": float(by_step[step - 1]) for step in STEPS if step <= len(by_step)}}


def signals(records: Sequence[Record]) -> Forecast:
    """Return what the sensors would read after each window without noise."""
    return by_sensor(records, "signal")


def by_sensor(records: Sequence[Record], field: str) -> np.ndarray:
    """Return a field of all records [s, w, ...]; every sensor has as many, one sensor after the other."""
    groups: dict[str, list[np.ndarray]] = {}
    for record in records:
        groups.setdefault(record["sensor"], []).append(record[field])
    return np.stack([np.stack(group) for group in groups.values()])
