"""Classification of series of varying length: .ts files of the UCR and UEA archives as JSON Lines, with baselines.

`prepare FOLDER OUT` reads NAME_TRAIN.ts and NAME_TEST.ts, `baselines OUT` prints their accuracies. docs/series.md
is the guide.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import tyro
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from perceivers.data.formats.readers import read_rows
from perceivers.data.formats.writers import PlainRow, write_rows

WARPED = 128
"""Maximum length of series for dynamic time warping, whose cost is quadratic in the length."""

TINY = 1e-8
"""Added to standard deviations, which may be 0."""

KERNELS = 2000
"""Number of random convolutions of ROCKET."""


def prepare(source: Path, out: Path, /) -> None:
    """Write train.jsonl and test.jsonl: "series", a list of steps with a number for each channel, and its "label".

    "shape" is the series with mean 0 and standard deviation 1, "spread" the logarithm of the standard deviation, for
    series whose scales differ by orders of magnitude.
    """
    out.mkdir(parents=True, exist_ok=True)
    for part in ("TRAIN", "TEST"):
        (path,) = source.glob(f"*_{part}.ts")
        write_rows(out / f"{part.lower()}.jsonl", map(as_row, *zip(*read_ts(path), strict=True)))


def read_ts(path: Path) -> Iterator[tuple[np.ndarray, str]]:
    """Yield series [n, C] and classes of a .ts file, where colons separate channels and the class."""
    for line in path.read_text().splitlines():
        if line and line[0] not in "#@":
            *channels, label = line.split(":")
            yield np.array([channel.split(",") for channel in channels], float).T, label


def as_row(series: np.ndarray, label: str) -> PlainRow:
    """Return a series and its class as a row of a table."""
    shape = standardised(series).round(4).tolist()
    spread = np.log(series.std() + TINY).item()
    return {"series": series.tolist(), "shape": shape, "spread": spread, "label": label}


def standardised(series: np.ndarray) -> np.ndarray:
    """Normalise each channel to mean 0 and standard deviation 1."""
    return (series - series.mean(0)) / (series.std(0) + TINY)


def baselines(data: Path, /) -> None:
    """Print accuracies of the baselines on the held-out series, as they are and each standardised."""
    (train, train_labels), (test, test_labels) = (read(data / f"{part}.jsonl") for part in ("train", "test"))
    mean, std = np.concatenate(train).mean(0), np.concatenate(train).std(0)
    as_they_are = [(series - mean) / std for series in (*train, *test)]
    each = [standardised(series) for series in (*train, *test)]
    for how, series in (("as they are", as_they_are), ("each standardised", each)):
        for baseline, labels in guesses(series, train_labels).items():
            print(f"{baseline}, {how}: {(labels == test_labels).mean():.3f}")


def guesses(series: Sequence[np.ndarray], known: np.ndarray) -> dict[str, np.ndarray]:
    """Return the classes that each baseline predicts; the first series are for training, with `known` classes."""
    train, test = series[: len(known)], series[len(known) :]
    predictions = {"nearest neighbour, Euclidean": known[nearest_euclidean(train, test)]}
    if max(map(len, series)) <= WARPED:
        predictions["nearest neighbour, dynamic time warping"] = known[nearest_warped(train, test)]
    features = rocket(series, np.random.default_rng(0))
    ridge = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-3, 5, 17)))
    ridge.fit(features[: len(known)], known)
    return {**predictions, f"ROCKET, {KERNELS:,} random convolutions": ridge.predict(features[len(known) :])}


def read(path: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Read series [n, C] of a file, and their classes."""
    rows = list(read_rows(path))
    return [np.array(row["series"]) for row in rows], np.array([row["label"] for row in rows])


def padded(series: Sequence[np.ndarray]) -> np.ndarray:
    """Stack series to [B, longest, C], with zeros after the shorter ones."""
    longest = max(map(len, series))
    return np.stack([np.pad(one, ((0, longest - len(one)), (0, 0))) for one in series])


def nearest_euclidean(train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> np.ndarray:
    """Return the index of the nearest training series, step by step, shorter series padded with zeros (the mean)."""
    both = padded([*train, *test]).reshape(len(train) + len(test), -1)
    known, queries = both[: len(train)], both[len(train) :]
    return np.array([((known - query) ** 2).sum(-1).argmin() for query in queries])


def nearest_warped(train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> np.ndarray:
    """Return the index of the nearest training series under dynamic time warping."""
    known, lengths = padded(train), np.array([len(one) for one in train])
    return np.array([warped(one, known, lengths).argmin() for one in test])


def warped(one: np.ndarray, known: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the dynamic time warping distances of one series to many: the cost of the cheapest alignment."""
    cost = ((known[:, :, None] - one) ** 2).sum(-1)  # [B, steps of the known series, steps of this one]
    total = np.full((len(known), cost.shape[1] + 1, len(one) + 1), np.inf)
    total[:, 0, 0] = 0
    for i in range(cost.shape[1]):
        for j in range(len(one)):
            before = np.minimum(np.minimum(total[:, i, j + 1], total[:, i + 1, j]), total[:, i, j])
            total[:, i + 1, j + 1] = cost[:, i, j] + before
    return total[np.arange(len(known)), lengths, len(one)]


def rocket(series: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Return ROCKET features [B, 2 KERNELS] (Dempster 2020): fraction of positive values and maximum of each kernel."""
    longest, channels = max(map(len, series)), series[0].shape[1]
    # Draw kernels, grouped by length and dilation, so that each group is one convolution.
    groups: dict[tuple[int, int], list[np.ndarray]] = {}
    for _ in range(KERNELS):
        length = int(rng.choice([7, 9, 11]))
        dilation = 2 ** int(rng.uniform(0, np.log2(max((longest - 1) / (length - 1), 1)) + 1e-9))
        used = rng.permutation(channels) < rng.integers(1, channels + 1)
        weights = rng.normal(size=(channels, length)) * used[:, None]
        groups.setdefault((length, dilation), []).append(weights - weights.mean(-1, keepdims=True))
    features = []
    for (length, dilation), kernels in groups.items():
        weight, bias = torch.tensor(np.stack(kernels)), torch.tensor(rng.uniform(-1, 1, len(kernels)))
        padding = dilation * (length - 1) // 2
        convolved = [F.conv1d(torch.tensor(one.T), weight, bias, padding=padding, dilation=dilation) for one in series]
        features += [torch.stack([one.gt(0).double().mean(-1), one.amax(-1)], -1).flatten() for one in convolved]
    count = len(series)
    return np.stack([torch.cat(features[number::count]).numpy() for number in range(count)])


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"prepare": prepare, "baselines": baselines})
