"""Forecasts by lead time: the model from one encoding, persistence, the seasonal mean, and ridge regression.

Letters: n hours at which a forecast is made ("now"), l lead times, v variables of all airports. A forecast is the
change from the last known value at now.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from perceivers.core.perceiver import PerceiverIO
from perceivers.data import WeatherLeads
from perceivers.data.published.nyc_weather import UNITS, HourlyWeather, Weather, last_known
from perceivers.runs.run import Run
from perceivers.training.metrics import Scores, inference

BATCH = 128
"""Number of hours that are encoded at once."""

PENALTIES = 10.0 ** np.arange(1, 6)
"""Penalties of ridge regression, of which the last fifth of the training part chooses one for each lead time."""

MODEL = "the model, one encoding"
"""Name of the model's own scores by lead time."""

Forecast = Float[np.ndarray, "n l v"]
"""Changes of the variables from now."""


def baseline_scores(run: Run) -> dict[str, Scores]:
    """Return the errors by lead time of the model and of the baselines on the held-out hours."""
    data = run.recipe.data
    assert isinstance(data, WeatherLeads)
    truth = changes(data.weather(), held_out_hours(data), data.leads)
    names = [f"{lead} h" for lead in data.leads]
    return {name: errors(guess, truth, names, data) for name, guess in forecasts(run).items()}


def forecasts(run: Run) -> dict[str, Forecast]:
    """Return the forecasts of the model and of the baselines on the held-out hours, by name."""
    data = run.recipe.data
    assert isinstance(data, WeatherLeads)
    hours = held_out_hours(data)
    return {
        MODEL: model_forecast(run.model.cpu(), data, hours, data.leads),
        "persistence": np.zeros_like(changes(data.weather(), hours, data.leads)),
        "seasonal mean": seasonal_forecast(data, hours, data.leads),
        "ridge regression": ridge_forecast(data, hours, data.leads),
    }


def held_out_hours(data: WeatherLeads) -> np.ndarray:
    """Return the hours of the held-out part at which a forecast of all lead times is made."""
    return data.nows(True, data.past, max(data.leads))


def changes(weather: Weather, nows: np.ndarray, leads: Sequence[int]) -> Forecast:
    """Return the true changes from the last known values; NaN where unknown."""
    table, (filled, _) = weather.values.reshape(len(weather.values), -1), last_known(weather.values)
    return table[nows[:, None] + np.array(leads)] - filled[nows, None]


def model_forecast(model: PerceiverIO, data: WeatherLeads, nows: np.ndarray, leads: Sequence[int]) -> Forecast:
    """Return the forecasts of the model: each past is encoded once, and decoded at all lead times."""
    past, weather, means, found = data.pasts(), data.weather(), data.seasonal_means(), []
    for first in range(0, len(nows), BATCH):
        some = nows[first : first + BATCH]
        with inference(model):
            encoded = model.encode({"past": past(some), "clock": weather.wave(some)})
            by_lead = [
                model.decode(encoded, condition=condition(weather, some, lead), outputs=["change"]) for lead in leads
            ]
        found.append(np.stack([each["change"].numpy() for each in by_lead], 1))
    return np.concatenate(found) + means[nows[:, None] + np.array(leads)] - means[nows, None]


def condition(weather: Weather, nows: np.ndarray, lead: int) -> Mapping[str, Any]:
    """Return what conditions the decoder on a lead time in hours."""
    return {"lead_time": torch.full((len(nows), 1), float(lead)), "lead_clock": weather.wave(nows + lead)}


def seasonal_forecast(data: WeatherLeads, nows: np.ndarray, leads: Sequence[int]) -> Forecast:
    """Forecast the seasonal mean."""
    filled, _ = last_known(data.weather().values)
    return data.seasonal_means()[nows[:, None] + np.array(leads)] - filled[nows, None]


def ridge_forecast(data: WeatherLeads, nows: np.ndarray, leads: Sequence[int]) -> Forecast:
    """Forecast by a ridge regression for each lead time, on the past as deviations from the seasonal mean.

    Unknown values of the training part are the last known ones.
    """
    from sklearn.linear_model import Ridge

    # Inputs and targets in units of the standard deviation, and the seasonal change that is added to a forecast.
    means, (filled, _) = data.seasonal_means(), last_known(data.weather().values)
    spread = deviations(data).ravel()
    table = (filled - means) / spread

    def inputs(hours: np.ndarray) -> np.ndarray:
        return table[hours[:, None] - np.arange(data.past)].reshape(len(hours), -1)

    training = data.nows(False, data.past, max(leads))
    cut = len(training) * 4 // 5
    found = []
    for lead in leads:
        targets = table[training + lead] - table[training]
        first, last = training[: cut - data.past - lead], training[cut:]  # no hour is in both

        trials = [Ridge(alpha=penalty).fit(inputs(first), targets[: len(first)]) for penalty in PENALTIES]
        losses = [float(np.mean((trial.predict(inputs(last)) - targets[cut:]) ** 2)) for trial in trials]
        chosen = Ridge(alpha=PENALTIES[np.argmin(losses)]).fit(inputs(training), targets)
        found.append(chosen.predict(inputs(nows)) * spread + means[nows + lead] - means[nows])
    return np.stack(found, 1)


def deviations(data: HourlyWeather) -> Float[np.ndarray, "airports variables"]:
    """Return the standard deviation of each variable over the training part."""
    part = data.part(held_out=False)
    return np.nanstd(data.weather().values[part.start : part.stop], axis=0)


def errors(guess: np.ndarray, truth: np.ndarray, names: Sequence[str], data: HourlyWeather) -> Scores:
    """Return the root mean square error by lead time: of all variables in units of `deviations`, and of each variable.

    `guess` and `truth` [n, l, v]; `names` of the lead times.
    """
    difference = (guess - truth).reshape(*truth.shape[:2], -1, len(UNITS))  # [n, l, airports, variables]
    spread = deviations(data)[: difference.shape[2]]
    found = {"all, in std": np.sqrt(np.nanmean((difference / spread) ** 2, axis=(0, 2, 3)))}
    by_variable = np.sqrt(np.nanmean(difference**2, axis=(0, 2)))
    found |= {f"{name}, {unit}": by_variable[:, number] for number, (name, unit) in enumerate(UNITS.items())}
    return {output: dict(zip(names, values.tolist(), strict=True)) for output, values in found.items()}
