"""Sets of records with several outputs: snapshots of StarCraft II games as JSON Lines, with baselines.

`prepare FOLDER OUT` reads .SC2Replay files, `baselines RUN` prints their scores on the held-out records of a run.
docs/records.md is the guide. Needs `pip install perceivers[starcraft]`.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from perceivers.data import StarCraft
from perceivers.data.formats.writers import PlainRow, write_rows
from perceivers.modalities import Records
from perceivers.modalities.fields import NumberField
from perceivers.runs.run import Run
from perceivers.schema import Record
from perceivers.systems import starcraft


def prepare(source: Path, out: Path, /, every: int = 3) -> None:
    """Write train.jsonl and test.jsonl, of different games: "units" by column, "statistics" of both players, "time"."""
    games = StarCraft(folder=str(source))
    out.mkdir(parents=True, exist_ok=True)
    for part, snapshots in (("train", games.training()), ("test", games.held_out())):
        write_rows(out / f"{part}.jsonl", map(as_row, snapshots[::every]))


def as_row(snapshot: Record) -> PlainRow:
    """Return a snapshot as plain values."""
    return {**snapshot, "units": {name: column.tolist() for name, column in snapshot["units"].items()}}


def baselines(folder: Path, /) -> None:
    """Print scores of the baselines, by the metrics of the run."""
    run = Run(folder)
    for baseline, outputs in starcraft.baseline_scores(run).items():
        for output, metrics in outputs.items():
            print(f"{baseline}: {', '.join(f'{output} {name} {value:.3f}' for name, value in metrics.items())}")
    train, test = run.training, run.held_out
    spec = run.recipe.schema.outputs["statistics"]
    assert isinstance(spec, Records)
    deviations = np.array([field.std for field in spec.fields.values() if isinstance(field, NumberField)])
    predicted, true = ridge(train, test, lambda row: [row["statistics"][name] for name in spec.fields])
    rmse = (((predicted - true) / deviations) ** 2).mean() ** 0.5
    predicted, true = ridge(train, test, lambda row: row["time"])
    mae = np.abs(predicted - true).mean()
    print(f"ridge regression on counts of units: statistics rmse {rmse:.3f}, time mae {mae:.1f}")


def ridge(
    train: Sequence[Record], test: Sequence[Record], answer: Callable[[Record], Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted and true values of the test records, by ridge regression on counts of units."""
    model = make_pipeline(DictVectorizer(), StandardScaler(with_mean=False), RidgeCV(np.logspace(0, 6, 13)))
    model.fit(list(counts(train)), [answer(row) for row in train])
    return model.predict(list(counts(test))), np.array([answer(row) for row in test])


def counts(rows: Iterable[Record]) -> Iterable[dict[str, float]]:
    """Yield the number of units of each player and type, for each record."""
    for row in rows:
        names, numbers = np.unique([f"{t} {o}" for t, o in zip(*both(row), strict=True)], return_counts=True)
        yield dict(zip(names.tolist(), numbers.astype(float).tolist(), strict=True))


def both(row: Record) -> tuple[list[str], list[int]]:
    """Return types and owners of the units of a record."""
    return row["units"]["type"], row["units"]["owner"]


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"prepare": prepare, "baselines": baselines})
