"""Forecasts at any time: windows of co2.csv or sunspots.csv of statsmodels, with baselines.

`prepare FILE OUT` writes the windows, `baselines OUT` prints their errors. docs/forecasting.md is the guide.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
import tyro
from sklearn.linear_model import RidgeCV

from perceivers.data.formats.readers import read_rows
from perceivers.data.formats.writers import PlainRow, write_rows


@dataclass(frozen=True)
class Plan:
    """Windows of a time series; all numbers in years."""

    past: float
    """Length of the input."""
    future: float
    """Length of the forecast."""
    season: float
    """Period of the series."""
    split: float
    """Windows that end before this year are for training; windows whose forecast begins after it are held out."""
    relative: bool
    """Values are relative to the last known one, for a series with a trend."""


PLANS = {
    "co2": Plan(past=2.0, future=1.0, season=1.0, split=1990.0, relative=True),
    "sunspots": Plan(past=44.0, future=11.0, season=11.0, split=1940.0, relative=False),
}
"""Plans by the name of the file."""


def prepare(source: Path, out: Path, /) -> None:
    """Write train.jsonl and test.jsonl: "past" and "future" as [[years from now, value], ...], and "now"."""
    plan = PLANS[source.stem]
    windows = list(windows_of(*read_record(source), plan))
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "train.jsonl", [row for row in windows if row["now"] + plan.future < plan.split])
    write_rows(out / "test.jsonl", [row for row in windows if row["now"] >= plan.split])
    write_rows(out / "plan.jsonl", [asdict(plan)])


def read_record(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read times in years, and values; missing values are left out."""
    rows = [list(row.cells.values()) for row in read_rows(path)]
    known = [(year_of(time), float(value)) for time, value in rows if value is not None]
    times, values = np.array(known).T
    return times, values


def year_of(text: str) -> float:
    """Convert a date to years: 19580329 to 1958.24, 1700 to 1700."""
    if len(text) <= 4:
        return float(text)
    day = date(int(text[:4]), int(text[4:6]), int(text[6:]))
    return day.year + (day.timetuple().tm_yday - 1) / 365.25


def windows_of(times: np.ndarray, values: np.ndarray, plan: Plan) -> Iterator[PlainRow]:
    """Yield a window for each time that has a complete past and future."""
    for now, value in zip(times, values, strict=True):
        if times[0] <= now - plan.past and now + plan.future <= times[-1]:
            base = value if plan.relative else 0.0
            points = np.stack([times - now, values - base], -1).round(4)
            ago = now - times
            past, future = (points[part].tolist() for part in ((ago >= 0) & (ago < plan.past), between(-ago, plan)))
            yield {"past": past, "future": future, "now": float(now)}


def between(ahead: np.ndarray, plan: Plan) -> np.ndarray:
    """Return True for times of the forecast, given relative to now."""
    return (ahead > 0) & (ahead <= plan.future)


def baselines(data: Path, /) -> None:
    """Print the root mean square errors of the baselines at the same times."""
    (plan,) = (Plan(**row.cells) for row in read_rows(data / "plan.jsonl"))
    train, test = (list(read_rows(data / f"{part}.jsonl")) for part in ("train", "test"))
    forecasts: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "mean of the past": lambda past, times: np.full(len(times), past[:, 1].mean()),
        "last value": lambda past, times: np.full(len(times), past[-1, 1]),
        "value one season ago": lambda past, times: at(past, times - plan.season),
        "the same and the rise over a season": lambda past, times: drifted(past, times, plan),
        "linear regression on the past": regression(train, plan),
    }
    for name, forecast in forecasts.items():
        errors = []
        for row in test:
            past, future = np.array(row["past"]), np.array(row["future"])
            errors.append(forecast(past, future[:, 0]) - future[:, 1])
        print(f"{name}: {np.sqrt((np.concatenate(errors) ** 2).mean()):.3f}")


def at(points: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return values at any times, interpolated linearly."""
    return np.interp(times, points[:, 0], points[:, 1])


def drifted(past: np.ndarray, times: np.ndarray, plan: Plan) -> np.ndarray:
    """Return the value one season before, plus the rise of the last value over one season."""
    return at(past, times - plan.season) + past[-1, 1] - at(past, np.array([-plan.season]))


def regression(train: list, plan: Plan) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return a ridge regression from a regular grid of the past to one of the future, interpolated linearly."""
    step = plan.future / 50 if plan.future < 5 else 1.0
    before, after = np.arange(-plan.past + step, step / 2, step), np.arange(step, plan.future + step / 2, step)
    pasts = np.stack([at(np.array(row["past"]), before) for row in train])
    futures = np.stack([at(np.array(row["past"] + row["future"]), after) for row in train])
    model = RidgeCV(np.logspace(-3, 6, 19)).fit(pasts, futures)

    def forecast(past: np.ndarray, times: np.ndarray) -> np.ndarray:
        return np.interp(times, [0.0, *after], [past[-1, 1], *model.predict(at(past, before)[None])[0]])

    return forecast


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"prepare": prepare, "baselines": baselines})
