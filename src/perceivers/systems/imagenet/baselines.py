"""Baselines of image classification: the most frequent class, and logistic regression on the same pixels."""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perceivers.modalities import Image, Label
from perceivers.runs.run import Run
from perceivers.schema import Record, Schema, find_modality
from perceivers.systems.imagenet.recipes import PAPER
from perceivers.training.metrics import Scores, scored
from perceivers.training.sampler import evaluation_batches

BATCH = 128
"""Number of pictures in an evaluation batch."""


def baseline_scores(run: Run) -> dict[str, Scores]:
    """Return scores of both baselines on the held-out records of a run; none for the paper's recipes."""
    if run.recipe.task in PAPER:
        return {}
    return baselines(run.recipe.schema, run.training, run.held_out)


def baselines(fitted: Schema, training: Sequence[Record], held_out: Sequence[Record]) -> dict[str, Scores]:
    """Return the scores of both baselines by the metrics of the label."""
    name, label = find_modality(fitted.outputs, Label)
    pixels, classes = pixels_of(fitted, training)
    held_out_pixels, truth = pixels_of(fitted, held_out)
    frequencies = classes.bincount(minlength=label.num_classes) / len(classes)
    guesses = {
        "most frequent class": frequencies.expand(len(truth), -1),
        "logistic regression": logistic_regression(pixels, classes, held_out_pixels, label.num_classes),
    }
    return {baseline: scored(fitted.outputs, [(name, (guess, truth))]) for baseline, guess in guesses.items()}


def pixels_of(fitted: Schema, records: Sequence[Record]) -> tuple[Float[Tensor, "n p"], Int[Tensor, " n"]]:
    """Return the pixels of pictures as the model gets them in evaluation, and their classes."""
    (name, image), (output, _) = find_modality(fitted.inputs, Image), find_modality(fitted.outputs, Label)
    batches = list(evaluation_batches(fitted, records, BATCH))
    pixels = [image.normalise(batch["inputs"][name]).flatten(1) for batch in batches]
    return torch.cat(pixels), torch.cat([batch["targets"][output] for batch in batches])


def logistic_regression(
    pixels: Float[Tensor, "n p"], classes: Int[Tensor, " n"], others: Float[Tensor, "m p"], num_classes: int
) -> Float[Tensor, "m k"]:
    """Return the class probabilities of `others`; the regularisation is tuned on a tenth of the training records."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, ShuffleSplit

    tenth = ShuffleSplit(1, test_size=0.1, random_state=0)
    search = GridSearchCV(LogisticRegression(max_iter=100), {"C": [1e-4, 1e-2, 1.0]}, cv=tenth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits of the optimum change no score
        search.fit(pixels.numpy(), classes.numpy())
    probabilities = torch.zeros(len(others), num_classes)
    probabilities[:, search.classes_] = torch.from_numpy(search.predict_proba(others.numpy())).float()
    return probabilities
