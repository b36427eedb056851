"""The data of the ablations, as arrays; a folder that is prepared already is left as it is."""

from pathlib import Path

import numpy as np

from examples import points
from perceivers.files.durable import whole_file

KNOWN, ASKED = 78, 128
"""Number of pixels of a picture that are known, a tenth, and number of others that must be found."""

PICTURES = {"train": 20_000, "test": 2000}
"""Number of pictures of which points are taken."""

NEEDED = {
    "documents": "text files: Debian's python3.11-doc, usr/share/doc/python3.11/html/_sources",
    "fashion-mnist": "Fashion-MNIST: Debian's dataset-fashion-mnist, usr/share/datasets/fashion-mnist",
    "diamonds.csv": "prices of diamonds: plotnine/data/diamonds.csv of the package plotnine",
}
"""Content that the folder of the data must have, by name, and where it is found."""


def prepare(folder: Path) -> None:
    """Write the arrays of the points; ValueError that names what the folder lacks."""
    for name, source in NEEDED.items():
        if not (folder / name).exists():
            raise ValueError(f"{folder} has no {name}: {source}")
    for part in PICTURES:
        path = folder / "points" / f"{part}.npz"
        if not path.exists():
            with whole_file(path) as fresh, fresh.open("wb") as file:
                np.savez_compressed(file, **point_sets(folder, part))  # type: ignore[arg-type]


def point_sets(folder: Path, part: str) -> dict[str, np.ndarray]:
    """Return "known" [n, KNOWN, 3] and "asked" [n, ASKED, 3], points of row, column and grey, none in both."""
    name = {"train": "train", "test": "t10k"}[part]
    images = points.read_idx(folder / "fashion-mnist" / f"{name}-images-idx3-ubyte.gz")[: PICTURES[part]]
    every = points.as_points(images)
    order = np.random.default_rng(0).permuted(np.broadcast_to(np.arange(784), every.shape[:2]), axis=1)
    chosen = np.take_along_axis(every, order[:, : KNOWN + ASKED, None], axis=1)
    return {"known": chosen[:, :KNOWN], "asked": chosen[:, KNOWN:]}
