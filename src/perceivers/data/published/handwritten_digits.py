"""The handwritten digits of scikit-learn: 1,797 pictures of 8 x 8 pixels with values 0 to 16, in ten classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from perceivers.data.dataset import DataSet
from perceivers.schema import Record


@dataclass(frozen=True)
class Digits(DataSet):
    """Records of "image" [8, 8], "pixels" (a point set of all 64: row and column, and value) and "label"."""

    held_out_fraction: float = 0.2
    """Fraction of each class that is held out."""
    seed: int = 0
    """Seed of the random split."""
    kind: Literal["digits"] = "digits"
    """Name in files."""

    def training(self) -> Sequence[Record]:
        """Return the training records."""
        return self._split()[0]

    def held_out(self) -> Sequence[Record]:
        """Return the held-out records."""
        return self._split()[1]

    def _split(self) -> tuple[list[Record], list[Record]]:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        parts = train_test_split(
            np.arange(len(labels)), test_size=self.held_out_fraction, random_state=self.seed, stratify=labels
        )
        training, held_out = ([_record(images[i].reshape(8, 8), int(labels[i])) for i in part] for part in parts)
        return training, held_out


def _record(image: np.ndarray, label: int) -> Record:
    coordinates = np.moveaxis(np.indices(image.shape), 0, -1).reshape(-1, image.ndim)
    return {"image": image, "pixels": {"coordinates": coordinates, "values": image.reshape(-1, 1)}, "label": label}
