"""Baselines for velocities, session by session: the mean, and ridge regression on binned counts.

For reference there is a decoder that is given the tuning of every unit, which nothing that learns from data has.

Letters: W windows of a session, T times of a window, U units. Bins are as long as the distance of two times.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float

from perceivers.data import SpikeTrains
from perceivers.data.spike_trains import GRID, KINDS, SPEED, Session, Tuning, reaches
from perceivers.modalities import PointSet
from perceivers.runs.run import Run
from perceivers.schema import Record
from perceivers.training.metrics import Compared, Scores, scored

LAGS = ((-10, 4), (-15, 7), (-20, 10))
"""Ranges to choose from: first and last bin that predict a time, relative to the bin of this time."""

PENALTIES = tuple(10.0**power for power in range(5))
"""Penalties to choose from."""

VALIDATION = 0.2
"""Fraction of a session's training windows, the last ones, on which range and penalty are chosen."""

PRIOR_STEPS, ITERATIONS = 200_000, 20
"""Steps of movement that the covariance of velocities is estimated from; iterations of the decoder with tuning."""


@dataclass(frozen=True)
class Part:
    """Windows of one session."""

    counts: Float[np.ndarray, "w t u"]
    """Number of spikes of each unit in each bin."""
    velocities: Float[np.ndarray, "w t 2"]
    """Velocities in the middles of the bins."""


def baseline_scores(run: Run) -> dict[str, Scores]:
    """Return the scores of the baselines on the held-out windows of a run."""
    data, spec = run.recipe.data, run.recipe.schema.outputs["velocity"]
    assert isinstance(data, SpikeTrains)
    sessions = {session.name: session for session in data.sessions()}
    # Ridge regression learns from windows that do not overlap: the others add no spike.
    training = parts_of(data.apart().training(), sessions)
    held_out = parts_of(run.held_out, sessions)
    guesses: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for name, part in held_out.items():
        mean = training[name].velocities.mean((0, 1))
        guesses["mean velocity"][name] = np.broadcast_to(mean, part.velocities.shape)
        guesses["ridge regression per session"][name] = ridge(training[name], part.counts)
        guesses["decoder that is given the tuning"][name] = given_tuning(sessions[name].tuning, part.counts)
    return {name: scores_of(cast(PointSet, spec), held_out, guess) for name, guess in guesses.items()}


def parts_of(records: Sequence[Record], sessions: Mapping[str, Session]) -> dict[str, Part]:
    """Return the windows of each session, in their order, with binned counts."""
    windows: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        windows[record["session"]].append(record)
    return {
        name: Part(
            np.stack([binned(record, sessions[name]) for record in several]),
            np.stack([record["velocity"]["values"] for record in several]),
        )
        for name, several in windows.items()
    }


def binned(record: Record, session: Session) -> Float[np.ndarray, "t u"]:
    """Return the number of spikes of each unit of a session in each bin of a window."""
    events, bins = record["spikes"], len(record["velocity"]["values"])
    spikes = events["kind"] == KINDS[0]
    numbers = {unit: number for number, unit in enumerate(session.units.tolist())}
    units = [numbers[unit] for unit in events["unit"][spikes].tolist()]
    counts = np.zeros((bins, len(numbers)))
    np.add.at(counts, (np.minimum((events["time"][spikes] * bins).astype(int), bins - 1), units), 1)
    return counts


def ridge(training: Part, counts: Float[np.ndarray, "w t u"]) -> Float[np.ndarray, "w t 2"]:
    """Predict the velocities from counts; the range of lags and the penalty are chosen on the last training windows."""
    cut = round(len(training.counts) * (1 - VALIDATION))
    first = Part(training.counts[:cut], training.velocities[:cut])
    errors = {}
    for lags in LAGS:
        guesses = ridge_with(first, training.counts[cut:], lags, PENALTIES)
        for penalty, guess in zip(PENALTIES, guesses, strict=True):
            errors[lags, penalty] = float(((guess - training.velocities[cut:]) ** 2).mean())
    lags, penalty = min(errors, key=lambda choice: errors[choice])
    return next(ridge_with(training, counts, lags, [penalty]))


def ridge_with(
    training: Part, counts: Float[np.ndarray, "w t u"], lags: tuple[int, int], penalties: Sequence[float]
) -> Iterator[Float[np.ndarray, "w t 2"]]:
    """Yield the predictions of ridge regression for each penalty, in units of a count's variance."""
    x, y = (array.reshape(-1, array.shape[-1]) for array in (lagged(training.counts, lags), training.velocities))
    mean, middle = x.mean(0), y.mean(0)
    values, vectors = np.linalg.eigh((x - mean).T @ (x - mean))
    target = vectors.T @ ((x - mean).T @ (y - middle))
    for penalty in penalties:
        weights = vectors @ (target / (values + penalty)[:, None])
        yield (lagged(counts, lags) - mean) @ weights + middle


def lagged(counts: Float[np.ndarray, "w t u"], lags: tuple[int, int]) -> Float[np.ndarray, "w t f"]:
    """Return the counts in the bins from `lags[0]` to `lags[1]` around each time; 0 outside the window."""
    before, after = -lags[0], lags[1]
    padded = np.pad(counts, ((0, 0), (before, after), (0, 0)))
    bins = counts.shape[1]
    return np.concatenate([padded[:, lag : lag + bins] for lag in range(before + after + 1)], axis=-1)


def given_tuning(tuning: Tuning, counts: Float[np.ndarray, "w t u"]) -> Float[np.ndarray, "w t 2"]:
    """Return the most probable velocities for the true rates, under a normal prior with the true covariance."""
    windows, bins, units = counts.shape
    # Move the counts of each unit by its latency, to the times that they tell about; elsewhere nothing is known.
    delays = np.round(tuning.latency * GRID * bins).astype(int)
    times = bins + int(delays.max())
    moved, exposure = np.zeros((windows, times, units)), np.zeros((times, units))
    for unit, delay in enumerate(delays):
        moved[:, delay : delay + bins, unit] = counts[:, :, unit]
        exposure[delay : delay + bins, unit] = 1 / bins
    precision = np.linalg.inv(prior_covariance(times, bins))
    # Fisher scoring, from rest: gradient and information of the counts at each time, and the prior over all times.
    velocity = np.zeros((windows, times, 2))
    for _ in range(ITERATIONS):
        slopes = tuning.slopes(velocity)
        rates = np.exp(tuning.log_rates(velocity)) * exposure
        information = np.einsum("wtu,wtui,wtuj->wtij", rates, slopes, slopes)
        score = np.einsum("wtu,wtui->wti", moved - rates, slopes)
        pull = score + np.einsum("wtij,wtj->wti", information, velocity)
        matrix = np.einsum("st,ij->sitj", precision, np.eye(2)) + np.einsum(
            "wtij,ts->wtisj", information, np.eye(times)
        )
        flat = matrix.reshape(windows, 2 * times, 2 * times)
        step = np.linalg.solve(flat, pull.reshape(windows, -1, 1)).reshape(velocity.shape) - velocity
        velocity = velocity + step.clip(-SPEED / 2, SPEED / 2)
    return velocity[:, :bins]


def prior_covariance(times: int, bins: int, seed: int = 0) -> Float[np.ndarray, "t t"]:
    """Return the covariance of a component of the velocity between bins, estimated from simulated movement."""
    every = round(1 / (bins * GRID))
    movement = reaches(np.random.default_rng(seed), PRIOR_STEPS)[::every]
    lags = [float((movement[lag:] * movement[: len(movement) - lag]).mean()) for lag in range(times)]
    distance = np.abs(np.subtract.outer(np.arange(times), np.arange(times)))
    return np.array(lags)[distance] + 1e-2 * lags[0] * np.eye(times)


def scores_of(spec: PointSet, parts: Mapping[str, Part], guesses: Mapping[str, np.ndarray]) -> Scores:
    """Return the scores of predictions for the windows of each session."""

    def pairs() -> Iterator[tuple[str, Compared]]:
        for name, part in parts.items():
            values = torch.from_numpy(part.velocities)
            target = {"values": values, "mask": torch.ones(values.shape[:-1], dtype=torch.bool)}
            yield "velocity", spec.metric_inputs(torch.tensor(guesses[name]), target)

    return scored({"velocity": spec}, pairs())
