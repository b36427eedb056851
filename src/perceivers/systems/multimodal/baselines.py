"""Baselines of reconstruction: the mean clip, and PCA with as many components as the latents have numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perceivers.core.config import Config
from perceivers.data.dataset import evenly
from perceivers.modalities import Label
from perceivers.modalities.grid import Grid
from perceivers.runs.run import Run
from perceivers.schema import Batch, Record, Schema
from perceivers.training.metrics import Scores, guess_scores
from perceivers.training.sampler import evaluation_batches

BATCH = 64
"""Number of records in a batch of a baseline."""

FITTED = 4096
"""Maximum number of training records, evenly spaced, that a baseline is fitted to."""

FITTED_VALUES = 1 << 28
"""Maximum number of values in the records that a baseline is fitted to."""

CODED = ("image", "audio")
"""Outputs that a baseline reconstructs; it also predicts the class."""

Values = Mapping[str, Any]
"""Raw outputs by name."""


def baseline_scores(run: Run) -> dict[str, Scores]:
    """Return scores of both baselines on the held-out clips of a run."""
    recipe = run.recipe
    assert isinstance(recipe.config, Config)
    numbers = recipe.config.latents.num_latents * recipe.config.latents.channels
    return baselines(recipe.schema, run.training, run.held_out, numbers)


def baselines(
    schema: Schema, training: Sequence[Record], held_out: Sequence[Record], numbers: int
) -> dict[str, Scores]:
    """Return the scores of the mean clip with the most frequent class, and of PCA with `numbers` components at most."""
    from sklearn.decomposition import PCA

    # Fit PCA and the class frequencies to a part of the training records that fits into memory.
    size = sum(np.size(held_out[0][name]) for name in CODED)
    fitted = evenly(training, min(FITTED, max(FITTED_VALUES // size, 2)))
    parts = [batch["targets"] for batch in evaluation_batches(schema, fitted, BATCH)]
    vectors = np.concatenate([flattened_targets(schema, part) for part in parts])
    pca = PCA(min(numbers, len(vectors)), svd_solver="full").fit(vectors)
    label = schema.outputs["label"]
    assert isinstance(label, Label)
    classes = torch.cat([part["label"] for part in parts]).bincount(minlength=label.num_classes).float()

    # Define both baselines, whose guesses have the form of raw outputs.
    def mean(batch: Batch) -> dict[str, Tensor]:
        targets = batch["targets"]
        same = np.broadcast_to(pca.mean_, (len(targets["label"]), len(pca.mean_)))
        return {**unflattened_targets(schema, same, targets), "label": classes.expand(len(same), -1)}

    def coded(batch: Batch) -> dict[str, Tensor]:
        targets = batch["targets"]
        return unflattened_targets(
            schema, pca.inverse_transform(pca.transform(flattened_targets(schema, targets))), targets
        )

    guesses = {"mean clip, most frequent class": mean, f"PCA, {pca.n_components_} numbers": coded}
    batches = evaluation_batches(schema, held_out, BATCH)
    return {baseline: guess_scores(schema, batches, guess) for baseline, guess in guesses.items()}


def flattened_targets(schema: Schema, targets: Values) -> Float[np.ndarray, "b n"]:
    """Flatten the pictures and sound of each clip into one vector, in the normalised units of the losses."""
    return torch.cat([grid_of(schema, name).normalise(targets[name]).flatten(1) for name in CODED], dim=1).numpy()


def unflattened_targets(schema: Schema, rows: Float[np.ndarray, "b n"], targets: Values) -> dict[str, Tensor]:
    """Unflatten vectors of `flattened_targets` to the shapes of the targets, in the units of the data."""
    sizes = [targets[name][0].numel() for name in CODED]
    parts = torch.from_numpy(rows.astype(np.float32)).split(sizes, dim=1)
    return {
        name: grid_of(schema, name).denormalise(part.view_as(targets[name]))
        for name, part in zip(CODED, parts, strict=True)
    }


def grid_of(schema: Schema, name: str) -> Grid:
    """Return a grid output of a schema by name."""
    spec = schema.outputs[name]
    assert isinstance(spec, Grid)
    return spec
