"""Scores of whole clips, and a baseline that ignores the inputs: the frequency of each label."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perceivers.data import DataSet
from perceivers.data.dataset import evenly
from perceivers.modalities import Labels
from perceivers.runs.recipe import Recipe
from perceivers.runs.run import Run
from perceivers.schema import Record, Schema
from perceivers.training.metrics import Scores, answers, gathered, scored
from perceivers.training.sampler import evaluation_batches

BATCH = 64
"""Number of records in an evaluation batch."""

COUNTED = 500
"""Number of training records, evenly spaced, in which labels are counted."""


def baseline_scores(run: Run) -> dict[str, Scores]:
    """Return scores of whole clips, averaged over their windows, and of the frequency of labels."""
    recipe, model = run.recipe, run.model
    training, held_out = run.training, run.held_out
    logits, fitting = gathered(answers(model, recipe.schema, held_out))["labels"]
    chances, truth = by_clip(recipe.data, logits.sigmoid(), fitting)
    frequency = label_frequency(recipe.schema, training).expand_as(chances)
    return {
        "whole clips": {"labels": label_scores(recipe, chances, truth)},
        "frequency of labels": {"labels": label_scores(recipe, frequency, truth)},
    }


def by_clip(
    data: DataSet, chances: Float[Tensor, "n classes"], truth: Int[Tensor, "n classes"]
) -> tuple[Float[Tensor, "clips classes"], Int[Tensor, "clips classes"]]:
    """Average the predictions over the successive windows of each clip (paper: 16; other data sets: 1)."""
    windows = data.records_per_clip
    return chances.unflatten(0, (-1, windows)).mean(dim=1), truth[::windows]


def label_frequency(schema: Schema, records: Sequence[Record]) -> Float[Tensor, "1 classes"]:
    """Return the fraction of the records in which each label occurs."""
    batches = evaluation_batches(schema, evenly(records, COUNTED), BATCH)
    return torch.cat([batch["targets"]["labels"] for batch in batches]).mean(dim=0, keepdim=True)


def label_scores(
    recipe: Recipe, chances: Float[Tensor, "n classes"], truth: Int[Tensor, "n classes"]
) -> dict[str, float]:
    """Return the metrics of the output, and for each group of exclusive labels its accuracy."""
    scores = scored(recipe.schema.outputs, [("labels", (chances, truth))])["labels"]
    for group, members in recipe.data.label_groups.items():
        names = label_names(recipe)
        index = [names.index(name) for name in members]
        right = chances[:, index].argmax(1) == truth[:, index].argmax(1)
        scores[f"{group}, accuracy"] = float(right.float().mean())
    return scores


def label_names(recipe: Recipe) -> Sequence[str]:
    """Return the names of the labels by number."""
    spec = recipe.schema.outputs["labels"]
    assert isinstance(spec, Labels)
    if names := recipe.data.names():
        return names
    return [str(number) for number in range(spec.classes)] if isinstance(spec.classes, int) else spec.classes
