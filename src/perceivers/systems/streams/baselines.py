"""Forecasts of a station by hours ahead: persistence, and exponential moving averages of its past.

Letters: w windows, h hours ahead, v variables of one airport. A forecast is the change from the last known value.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from perceivers.data import WeatherStreams
from perceivers.data.published.nyc_weather import AIRPORTS, last_known
from perceivers.runs.report import predict
from perceivers.runs.run import Run
from perceivers.systems.leads.baselines import errors
from perceivers.training.metrics import Scores

HOURS = (1, 3, 6, 12)
"""Hours ahead whose errors are scored."""

HALF_LIVES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Half-lives of the moving averages in hours; the training part chooses one for each variable and hour ahead."""

MODEL = "the model by hours ahead"
"""Name of the model's own scores."""


def baseline_scores(run: Run) -> dict[str, Scores]:
    """Return the errors by hours ahead of the model and of the baselines on the held-out windows."""
    data = run.recipe.data
    assert isinstance(data, WeatherStreams)
    guess, truth = model_forecast(run)
    guesses = {MODEL: guess, "persistence": np.zeros_like(truth), "moving average": average_forecast(data)}
    return {name: scores_by_hour(each, truth, data) for name, each in guesses.items()}


def model_forecast(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return the forecasts of the model, and the truth, for the held-out windows [w, h, airports x v]."""
    batch, predictions = predict(run.model.cpu(), run.recipe.schema, run.held_out)
    target = batch["targets"]["change"]
    truth = target["values"] if isinstance(target, Mapping) else target
    return _by_window(predictions["change"].numpy()), _by_window(truth.numpy())


def average_forecast(data: WeatherStreams) -> Float[np.ndarray, "w h v"]:
    """Forecast an exponential moving average of all known hours until now, begun with the first hour of the part."""
    table, known = (x.reshape(data.weather().values.shape) for x in last_known(data.weather().values))
    losses, guesses = [], []
    for half_life in HALF_LIVES:
        for held_out in (False, True):
            nows, part = data.nows(held_out, data.window, data.ahead, data.window), data.part(held_out)
            average = moving_average(table[part.start : part.stop], known[part.start : part.stop], half_life)
            guess = (average[nows - part.start] - table[nows])[:, None]  # the same for each hour ahead
            if held_out:
                guesses.append(guess)
            else:
                truth = data.weather().values[nows[:, None] + np.arange(1, data.ahead + 1)] - table[nows, None]
                losses.append(np.nanmean((guess - truth) ** 2, axis=(0, 2)))  # [h, v]
    best = np.argmin(losses, axis=0)[None, None, :, None]
    return np.take_along_axis(np.stack(guesses), best, 0)[0].reshape(len(guesses[0]), data.ahead, -1)


def moving_average(values: np.ndarray, known: np.ndarray, half_life: float) -> np.ndarray:
    """Return the exponential moving average at each hour [hours, ...]; unknown values change nothing."""
    keep = 0.5 ** (1 / half_life) if half_life else 0.0
    average, found = values[0], []
    for value, is_known in zip(values, known, strict=True):
        average = np.where(is_known, keep * average + (1 - keep) * value, average)
        found.append(average)
    return np.stack(found)


def scores_by_hour(guess: np.ndarray, truth: np.ndarray, data: WeatherStreams) -> Scores:
    """Return the errors at each of `HOURS` ahead, as far as the data go."""
    hours = [hour for hour in HOURS if hour <= data.ahead]
    index = np.array(hours) - 1
    return errors(guess[:, index], truth[:, index], [f"{hour} h" for hour in hours], data)


def _by_window(values: np.ndarray) -> np.ndarray:
    """Arrange the windows of all airports, one airport after the other [airports x w, h, v], by window."""
    by_airport = values.reshape(len(AIRPORTS), -1, *values.shape[1:])
    return np.moveaxis(by_airport, 0, 2).reshape(by_airport.shape[1], values.shape[1], -1)
