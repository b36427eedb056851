"""Pictures as sets of points, most of which may be missing: Fashion-MNIST as arrays, with baselines.

`prepare FOLDER OUT` reads the four IDX files, `baselines OUT` prints their accuracies. docs/points.md is the guide.
"""

import gzip
from pathlib import Path

import numpy as np
import tyro
from sklearn.linear_model import LogisticRegression

NAMES = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
"""Classes by number."""

SHARES = (0.3, 0.1, 0.03)
"""Fractions of the pixels that are known."""


def prepare(source: Path, out: Path, /, count: int = 20_000) -> None:
    """Write train.npz and test.npz: "pixels" [count, 784, 3] of row, column and grey, and "label"."""
    out.mkdir(parents=True, exist_ok=True)
    for part, name in (("train", "train"), ("t10k", "test")):
        images, labels = (read_idx(source / f"{part}-{what}-ubyte.gz") for what in ("images-idx3", "labels-idx1"))
        points = as_points(images[:count])
        np.savez_compressed(out / f"{name}.npz", pixels=points, label=np.array(NAMES)[labels[:count]])


def read_idx(path: Path) -> np.ndarray:
    """Read the array of a compressed IDX file of bytes."""
    data = gzip.decompress(path.read_bytes())
    axes = data[3]
    shape = np.frombuffer(data, ">i4", axes, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def as_points(images: np.ndarray) -> np.ndarray:
    """Convert pictures [B, H, W] to points [B, H W, 3] of row, column and grey."""
    rows, columns = np.indices(images.shape[1:], np.uint8)
    positions = np.broadcast_to(np.stack([rows, columns], -1), (*images.shape, 2))
    return np.concatenate([positions, images[..., None]], -1).reshape(len(images), -1, 3)


def baselines(data: Path, /) -> None:
    """Print accuracies of the baselines, which get pictures whose unknown pixels are 0."""
    (train, train_labels), (test, test_labels) = (read(data / f"{part}.npz") for part in ("train", "test"))
    rng = np.random.default_rng(0)
    for share in SHARES:
        shown, known = (rng.random(pictures.shape) < share for pictures in (train, test))
        predictions = {
            "logistic regression": LogisticRegression(C=0.01).fit(train * shown, train_labels).predict(test * known),
            "nearest neighbour": train_labels[nearest(train * shown, test * known, np.ones_like(known))],
            "nearest neighbour in the known pixels": train_labels[nearest(train, test, known)],
        }
        for name, labels in predictions.items():
            print(f"{share:.0%} of the pixels, {name}: {(labels == test_labels).mean():.3f}")


def nearest(train: np.ndarray, test: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the index of the training picture that is nearest to each test picture in its known pixels."""
    mask = known.astype(np.float32)
    parts = zip(np.array_split(test * mask, 20), np.array_split(mask, 20), strict=True)
    return np.concatenate([(valid @ (train**2).T - 2 * greys @ train.T).argmin(-1) for greys, valid in parts])


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read greys [B, 784] from 0 to 1, and classes."""
    with np.load(path) as file:
        return file["pixels"][..., 2] / np.float32(255), file["label"]


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"prepare": prepare, "baselines": baselines})
