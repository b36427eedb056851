"""Simulated recordings of neurons during reaching: spikes of units with known tuning, and the velocity of a hand.

    log rate(t) = log baseline + (depth * cos(angle of v - preferred) + gain) * tanh(|v| / SPEED),   v = v(t + latency)

A session is a pure function of (seed, session), and its first seconds do not depend on its length, so a window is a
function of (seed, session, window) and no files are needed. Times are in seconds, velocities in cm/s.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from perceivers.data.dataset import DataSet, LazyRecords
from perceivers.schema import Record

GRID = 0.005
"""Seconds between the times at which velocities and rates are computed."""

SPEED = 20.0
"""Speed at which rates saturate, in cm/s: the rates of neurons are bounded."""

REACH, PAUSE, WORKSPACE = (0.5, 1.0), (0.0, 0.3), 8.0
"""Ranges of the duration of a reach and of the pause after it, in seconds; half the side of the square of targets."""

BASELINE, DEPTH, GAIN, LATENCY = (2.0, 10.0), (0.5, 2.0), (0.0, 0.5), (0.05, 0.15)
"""Ranges of the tuning: rate at rest in Hz, depths, gains, and the seconds by which spikes precede the movement."""

UNTUNED = 0.15
"""Probability that a unit has neither depth nor gain."""

REFRACTORY = 0.002
"""Seconds after a spike in which a unit is silent."""

TINY = 1e-6
"""Smallest speed that has a direction, in cm/s."""

KINDS = ("spike", "start", "end")
"""Types of an event: a spike, or the begin or the end of the window, of each unit (POYO)."""

TUNING, MOVEMENT, COUNTS, JITTER = range(4)
"""Streams of random numbers of a session."""


@dataclass(frozen=True)
class SpikeTrains(DataSet):
    """Records of one second: "spikes" (columns unit, kind, time), "session", and "velocity" at evenly spaced times.

    Each session has units of its own. Training windows come from its begin and overlap, held-out windows from its end.
    Records go round the sessions: the first window of each session comes first, then the second of each.
    """

    num_sessions: int = 16
    """Number of sessions."""
    first_session: int = 0
    """Number of the first session: sessions of other numbers have other units."""
    training_seconds: int = 120
    """Seconds of a session, from its begin, that training windows are cut from."""
    held_out_seconds: int = 60
    """Seconds of a session, up to its end, that held-out windows are cut from."""
    session_seconds: int = 180
    """Length of a session, in seconds."""
    windows_per_second: int = 4
    """Number of training windows that begin in a second."""
    num_units: tuple[int, int] = (20, 40)
    """Smallest and largest number of units of a session."""
    num_samples: int = 50
    """Number of velocities in a window."""
    seed: int = 0
    """Seed of all random numbers."""
    kind: Literal["spike_trains"] = "spike_trains"
    """Name in files."""

    def __post_init__(self) -> None:
        sizes = ("num_sessions", "training_seconds", "held_out_seconds", "windows_per_second", "num_samples")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        if min(self.first_session, self.seed) < 0:
            raise ValueError(f"first_session = {self.first_session} and seed = {self.seed} must be at least 0")
        if (needed := self.training_seconds + self.held_out_seconds) > self.session_seconds:
            parts = f"training_seconds + held_out_seconds = {needed}"
            raise ValueError(f"{parts} must be at most session_seconds = {self.session_seconds}")
        if not 1 <= self.num_units[0] <= self.num_units[1]:
            raise ValueError(f"num_units = {self.num_units} must be two numbers from 1 on, the smaller one first")

    @property
    def fitted_to(self) -> int:
        """One window of each session, in which every unit has its start and end."""
        return self.num_sessions

    def training(self) -> Sequence[Record]:
        """Return the training windows."""
        starts = np.arange((self.training_seconds - 1) * self.windows_per_second + 1) / self.windows_per_second
        return self._windows(starts)

    def held_out(self) -> Sequence[Record]:
        """Return the held-out windows, which do not overlap."""
        return self._windows(self.session_seconds - self.held_out_seconds + np.arange(float(self.held_out_seconds)))

    def apart(self) -> "SpikeTrains":
        """Return the same data with training windows that do not overlap."""
        return replace(self, windows_per_second=1)

    def sessions(self) -> "list[Session]":
        """Return the sessions, simulated."""
        return [self.session(number) for number in range(self.num_sessions)]

    def session(self, number: int) -> "Session":
        """Return the session of this number, counted from `first_session`."""
        return simulated(self.seed, self.first_session + number, self.session_seconds, self.num_units)

    def _windows(self, starts: Float[np.ndarray, " w"]) -> Sequence[Record]:
        return LazyRecords(self.num_sessions * len(starts), partial(self._window, starts))

    def _window(self, starts: Float[np.ndarray, " w"], number: int) -> Record:
        window, session = divmod(number, self.num_sessions)
        return self.session(session).window(float(starts[window]), self.num_samples)


@dataclass(frozen=True)
class Tuning:
    """Tuning of the units of a session, an entry for each unit."""

    baseline: Float[np.ndarray, " u"]
    """Rates at rest, in Hz."""
    preferred: Float[np.ndarray, " u"]
    """Preferred directions, in radians."""
    depth: Float[np.ndarray, " u"]
    """Weights of the cosine in the log of the rate, at high speed."""
    gain: Float[np.ndarray, " u"]
    """Weights of the speed in the log of the rate."""
    latency: Int[np.ndarray, " u"]
    """Numbers of steps of GRID by which spikes precede the movement."""

    @property
    def tuned(self) -> Bool[np.ndarray, " u"]:
        """True for the units whose rate depends on the movement."""
        return self.depth > 0

    @property
    def directions(self) -> Float[np.ndarray, "u 2"]:
        """Preferred directions as unit vectors."""
        return np.stack([np.cos(self.preferred), np.sin(self.preferred)], axis=-1)

    def log_rates(self, velocity: Float[np.ndarray, "*b 2"]) -> Float[np.ndarray, "*b u"]:
        """Return the log of each unit's rate in Hz at velocities, those after its latency."""
        speed = np.linalg.norm(velocity, axis=-1, keepdims=True)
        along = velocity / np.maximum(speed, TINY) @ self.directions.T
        return np.log(self.baseline) + (self.depth * along + self.gain) * np.tanh(speed / SPEED)

    def slopes(self, velocity: Float[np.ndarray, "*b 2"]) -> Float[np.ndarray, "*b u 2"]:
        """Return the gradients of `log_rates` with respect to the velocity; at rest, without the gain."""
        # One part across the heading, where the cosine changes, and one along it, where the speed does.
        speed = np.maximum(np.linalg.norm(velocity, axis=-1, keepdims=True), TINY)
        heading, response = velocity / speed, np.tanh(speed / SPEED)
        along = heading @ self.directions.T
        across = self.directions - along[..., None] * heading[..., None, :]
        faster = (self.depth * along + self.gain) * (1 - response**2) / SPEED
        return (self.depth * response / speed)[..., None] * across + faster[..., None] * heading[..., None, :]


@dataclass(frozen=True)
class Session:
    """A simulated session."""

    name: str
    """Name of the session."""
    units: np.ndarray
    """Name of each unit, which no other session has."""
    tuning: Tuning
    """Tuning of the units."""
    velocity: Float[np.ndarray, "t 2"]
    """Velocity at multiples of GRID."""
    times: Float[np.ndarray, " n"]
    """Times of all spikes, ascending."""
    numbers: Int[np.ndarray, " n"]
    """Number of the unit of each spike."""

    def window(self, start: float, num_samples: int) -> Record:
        """Return the second from `start` on; its velocities stand in the middles of `num_samples` equal parts."""
        first, last = np.searchsorted(self.times, [start, start + 1.0])
        count, spikes = len(self.units), last - first
        times = (np.arange(num_samples) + 0.5) / num_samples
        grid = np.arange(len(self.velocity)) * GRID
        return {
            "spikes": {
                "unit": np.concatenate([self.units[self.numbers[first:last]], self.units, self.units]),
                "kind": np.repeat(KINDS, [spikes, count, count]),
                "time": np.concatenate([self.times[first:last] - start, np.zeros(count), np.ones(count)]),
            },
            "session": self.name,
            "velocity": {
                "coordinates": times[:, None],
                "values": np.stack([np.interp(start + times, grid, side) for side in self.velocity.T], axis=1),
            },
        }


@lru_cache(maxsize=256)
def simulated(seed: int, number: int, seconds: int, num_units: tuple[int, int]) -> Session:
    """Simulate a session: its units, its movement, and its spikes."""
    streams = [np.random.default_rng((seed, number, stream)) for stream in (TUNING, MOVEMENT, COUNTS, JITTER)]
    tuning = random_tuning(streams[TUNING], num_units)
    units = np.array([f"session {number}, unit {unit}" for unit in range(len(tuning.baseline))])
    # Each unit's rate follows the velocity after its latency.
    steps = round(seconds / GRID)
    velocity = reaches(streams[MOVEMENT], steps + int(tuning.latency.max()) + 1)
    later = np.arange(steps)[:, None] + tuning.latency
    log_rates = np.take_along_axis(tuning.log_rates(velocity), later, axis=0)
    # Poisson counts at each step, spread evenly over the step; then the refractory period.
    counts = streams[COUNTS].poisson(np.exp(log_rates) * GRID)
    steps_of, numbers = (np.repeat(index, counts.ravel()) for index in np.indices(counts.shape).reshape(2, -1))
    times = (steps_of + streams[JITTER].random(len(steps_of))) * GRID
    kept = np.concatenate([_after_refractory(times, np.flatnonzero(numbers == unit)) for unit in range(len(units))])
    kept = kept[np.argsort(times[kept], kind="stable")]
    return Session(f"session {number}", units, tuning, velocity[: steps + 1], times[kept], numbers[kept])


def random_tuning(rng: np.random.Generator, num_units: tuple[int, int]) -> Tuning:
    """Draw the tuning of some units."""
    count = int(rng.integers(*num_units, endpoint=True))
    tuned = rng.random(count) >= UNTUNED
    return Tuning(
        baseline=np.exp(rng.uniform(np.log(BASELINE[0]), np.log(BASELINE[1]), count)),
        preferred=rng.uniform(-np.pi, np.pi, count),
        depth=tuned * rng.uniform(*DEPTH, count),
        gain=tuned * rng.uniform(*GAIN, count),
        latency=np.round(rng.uniform(*LATENCY, count) / GRID).astype(int),
    )


def reaches(rng: np.random.Generator, steps: int) -> Float[np.ndarray, "steps 2"]:
    """Return the velocity of a hand that reaches from one random target to the next, with minimum jerk."""
    velocity, done = np.zeros((steps, 2)), 0
    for begin, duration, displacement in _random_reaches(rng):
        if begin / GRID >= steps:
            return velocity
        first, done = int(np.ceil(begin / GRID)), min(int(np.ceil((begin + duration) / GRID)), steps)
        part = (np.arange(first, done) * GRID - begin) / duration
        velocity[first:done] = 30 * (part * (1 - part))[:, None] ** 2 * displacement / duration
    raise AssertionError("reaches never end")


def _random_reaches(rng: np.random.Generator) -> Iterator[tuple[float, float, Float[np.ndarray, "2"]]]:
    """Yield the begin, the duration and the displacement of each reach, for ever."""
    time, place = 0.0, np.zeros(2)
    while True:
        target, duration, pause = rng.uniform(-WORKSPACE, WORKSPACE, 2), rng.uniform(*REACH), rng.uniform(*PAUSE)
        yield time, duration, target - place
        time, place = time + duration + pause, target


def _after_refractory(times: Float[np.ndarray, " n"], index: Int[np.ndarray, " k"]) -> Int[np.ndarray, " _"]:
    """Return the spikes of a unit, by index and sorted, without those that follow a kept one within REFRACTORY."""
    index = index[np.argsort(times[index], kind="stable")]
    kept, last = [], -np.inf
    for number, time in zip(index.tolist(), times[index].tolist(), strict=True):
        if time - last >= REFRACTORY:
            kept.append(number)
            last = time
    return np.array(kept, int)
