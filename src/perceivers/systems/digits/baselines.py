"""Baselines for pixels that are not in the input: the mean image, and the nearest input pixel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from perceivers.runs.recipe import changed_schema
from perceivers.runs.report import predict
from perceivers.runs.run import Run
from perceivers.schema import Record
from perceivers.systems.digits.model import SIDE
from perceivers.systems.digits.recipes import QUARTER
from perceivers.training.metrics import Scores


def baseline_scores(run: Run) -> dict[str, Scores]:
    """Return the PSNR of the model and of both baselines on the other pixels if the input is a quarter."""
    recipe, model = run.recipe, run.model
    quarter = changed_schema(recipe.schema, recipe.evaluations[QUARTER])
    batch, predictions = predict(model.cpu(), quarter, run.held_out)
    unread = psnr_of_unread(run.training, batch, predictions["image"])
    return {f"unread pixels, {QUARTER}": {"image": {f"psnr of {name}": value for name, value in unread.items()}}}


def psnr_of_unread(training: Sequence[Record], batch: dict[str, Any], images: torch.Tensor) -> dict[str, float]:
    """Return the PSNR [dB] of the model, the mean image and the nearest input pixel, on pixels not in the input."""
    read = batch["inputs"]["pixels"]
    truth = batch["targets"]["image"][..., 0].numpy()
    # For each digit: the mask of pixels that are not in the input, and the value of the nearest input pixel.
    unread = np.ones_like(truth, bool)
    nearest = np.empty_like(truth)
    every = np.moveaxis(np.indices((SIDE, SIDE)), 0, -1).reshape(-1, 2)
    for number, mask in enumerate(read["mask"].numpy()):
        coordinates, values = (read[name][number].numpy()[mask] for name in ("coordinates", "values"))
        unread[(number, *coordinates.astype(int).T)] = False
        distance = ((every[:, None] - coordinates[None]) ** 2).sum(-1)
        nearest[number] = values[distance.argmin(1), 0].reshape(SIDE, SIDE)
    mean = np.mean([record["image"] for record in training], axis=0)
    guesses = {
        "the model": images[..., 0].numpy(),
        "the mean image": np.broadcast_to(mean, truth.shape),
        "the nearest read pixel": nearest,
    }
    return {name: _psnr(guess[unread], truth[unread]) for name, guess in guesses.items()}


def _psnr(guess: np.ndarray, truth: np.ndarray, value_range: float = 16.0) -> float:
    return float(10 * np.log10(value_range**2 / np.mean((guess - truth) ** 2)))
