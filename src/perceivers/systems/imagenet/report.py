"""The report of a run of image classification."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from perceivers.core.perceiver import PerceiverIO
from perceivers.media.drawing import drawable
from perceivers.media.html_report import Report
from perceivers.modalities import Image, Label
from perceivers.runs.report import add_losses, add_score_table, predict
from perceivers.runs.run import Run
from perceivers.schema import Batch, Record, Schema, find_modality
from perceivers.training.metrics import answers, gathered
from perceivers.training.mixup import mixed
from perceivers.training.plots import SHOWN, draw_samples, subplots
from perceivers.training.sampler import PreparedRecords

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(run: Run) -> Path:
    """Write scores with those of the baselines, augmented pictures, samples, and the confusion matrix."""
    recipe, model = run.recipe, run.model
    page = Report(f"Image classification: run {run.folder.name}")
    add_score_table(page, run)
    page.heading("Training pictures")
    page.figure(draw_training(run), "Pictures of the training part as augmented, with their target classes.")
    page.heading("Samples, held out")
    held_out = run.held_out
    batch, predictions = predict(model.cpu(), recipe.schema, held_out[:: max(len(held_out) // SHOWN, 1)][:SHOWN])
    page.figure(draw_samples(recipe.schema, batch, predictions), "Picture; true class; the three most probable ones.")
    page.heading("Confusion matrix")
    _, label = find_modality(recipe.schema.outputs, Label)
    page.figure(
        draw_confusion(confusion(model, recipe.schema, held_out), label),
        "Held-out pictures of each true class (row) by predicted class (column), in percent of the row.",
    )
    add_losses(page, run)
    return page.write(run.folder / "report.html")


def draw_training(run: Run, count: int = 8) -> "Figure":
    """Draw some training pictures as a training step gets them: augmented, and mixed if the recipe says so."""
    recipe, schema, training = run.recipe, run.recipe.schema, run.training
    prepared = PreparedRecords(schema, training, recipe.training.seed, training=True)
    chosen = np.random.default_rng(recipe.training.seed).permutation(len(training))[:count]
    torch.manual_seed(recipe.training.seed)
    batch: Batch = schema.collate([prepared[int(number)] for number in chosen])
    if recipe.training.mixup is not None:
        batch = mixed(schema, batch, recipe.training.mixup)
    (name, image), (output, label) = find_modality(schema.inputs, Image), find_modality(schema.outputs, Label)
    titles = [_title(label, target) for target in batch["targets"][output]]
    figure, (row,) = subplots(1, titles, side=2.0)
    for axes, picture in zip(row, batch["inputs"][name], strict=True):
        image.picture(axes, picture)
    return figure


def _title(label: Label, target: Tensor) -> str:
    """Return the class of a picture or, if it is mixed from two, both classes with their shares."""
    if target.ndim == 0:
        return label.name_of(int(target))
    return "\n".join(f"{name} {part:.0%}" for name, part in label.ranking(target, 2) if part > 0.005)


def confusion(model: PerceiverIO, schema: Schema, records: Sequence[Record]) -> Int[Tensor, "k k"]:
    """Count records by true class (rows) and predicted class (columns)."""
    name, label = find_modality(schema.outputs, Label)
    counts = torch.zeros(label.num_classes, label.num_classes, dtype=torch.long)
    probabilities, truth = gathered(answers(model, schema, records))[name]
    return counts.index_put_((truth, probabilities.argmax(dim=-1)), torch.tensor(1), accumulate=True)


def draw_confusion(counts: Int[Tensor, "k k"], label: Label) -> "Figure":
    """Draw percentages of each row as shades, with numbers and names if there are at most 20 classes."""
    figure, ((axes,),) = subplots(1, ["true (rows), predicted (columns)"], side=6.0)
    percent = 100 * counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    axes.imshow(percent.numpy(), cmap="Blues", vmin=0, vmax=100)
    if len(counts) <= 20:
        names = [drawable(label.name_of(number)) for number in range(len(counts))]
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for row, column in np.ndindex(*counts.shape):
            shade = "white" if percent[row, column] > 50 else "black"
            axes.text(column, row, f"{percent[row, column]:.0f}", ha="center", va="center", color=shade, fontsize=8)
    return figure
