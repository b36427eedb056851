"""Simulated sensors on machines that turn: what they will read depends on a past much longer than a window.

Each machine turns at a speed of its own. Its phase p drifts at random, and two sensors read sin(p) and cos(p) under
noise as large as the signal:

    p[t + 1] = p[t] + 2 pi / period + drift * n[t],    reading[t] = (sin p[t], cos p[t]) + noise * m[t]

A few readings say little about the phase, and less about the speed; dozens of them say both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from perceivers.core.checks import COUNT, SIZE, check_ranges
from perceivers.data.dataset import DataSet, LazyRecords
from perceivers.schema import Record


@dataclass(frozen=True)
class SensorStreams(DataSet):
    """Records of consecutive windows: "sensor", a name; "past" [window, 2]; "later" [ahead, 2], its "signal"."""

    window: int = 4
    """Readings of a window."""
    ahead: int = 8
    """Readings after the window, which are to be predicted."""
    training_sensors: int = 256
    """Number of training streams."""
    training_windows: int = 48
    """Windows of a training stream."""
    held_out_sensors: int = 32
    """Number of held-out streams, of other machines."""
    held_out_windows: int = 480
    """Windows of a held-out stream: many more than in training, since a stream does not end."""
    periods: tuple[float, float] = (20.0, 80.0)
    """Shortest and longest period of a machine, in readings."""
    drift: float = 0.03
    """Standard deviation of the change of the phase between two readings, in radians."""
    noise: float = 1.0
    """Standard deviation of the noise of a reading."""
    seed: int = 0
    """Seed of the machines."""
    kind: Literal["sensor_streams"] = "sensor_streams"
    """Name in files."""

    def __post_init__(self) -> None:
        sizes = ("window", "ahead", "training_sensors", "training_windows", "held_out_sensors", "held_out_windows")
        check_ranges(self, {**dict.fromkeys(sizes, SIZE), **dict.fromkeys(("seed", "drift", "noise"), COUNT)})
        if not 0 < self.periods[0] <= self.periods[1] < np.inf:
            raise ValueError(f"periods = {self.periods} must be finite and above 0, the shortest first")
        if max(self.drift, self.noise) == np.inf:
            raise ValueError(f"drift = {self.drift} and noise = {self.noise} must be finite")

    def check_streams(self, stream: str) -> None:
        """Raise a ValueError unless the stream is the sensor: whole sensors are held out."""
        if stream != "sensor":
            raise ValueError(f"stream: {stream}: the field that names the streams of these data is sensor")

    def training(self) -> Sequence[Record]:
        """Return the windows of the training streams, one stream after the other."""
        return self._records(0, self.training_sensors, self.training_windows)

    def held_out(self) -> Sequence[Record]:
        """Return the windows of the held-out streams, one stream after the other."""
        return self._records(self.training_sensors, self.held_out_sensors, self.held_out_windows)

    def readings(self, sensor: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return `count` readings of a sensor, and the signal without noise, each [count, 2]."""
        rng = np.random.default_rng((self.seed, sensor))
        speed = 2 * np.pi / np.exp(rng.uniform(*np.log(self.periods)))
        steps = speed + self.drift * rng.standard_normal(count)
        phase = rng.uniform(0, 2 * np.pi) + np.cumsum(steps)
        signal = np.stack([np.sin(phase), np.cos(phase)], -1)
        return signal + self.noise * rng.standard_normal(signal.shape), signal

    def _records(self, first: int, sensors: int, windows: int) -> LazyRecords:
        count = windows * self.window + self.ahead
        streams = [self.readings(first + sensor, count) for sensor in range(sensors)]

        def record(index: int) -> Record:
            (readings, signal), now = streams[index // windows], (index % windows + 1) * self.window
            later = slice(now, now + self.ahead)
            return {
                "sensor": f"sensor {first + index // windows + 1}",
                "past": readings[now - self.window : now],
                "later": readings[later],
                "signal": signal[later],
            }

        return LazyRecords(sensors * windows, record)
