"""The report of a run on digits."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from perceivers.core.perceiver import PerceiverIO
from perceivers.media.html_report import Report
from perceivers.modalities.modality import sample_of
from perceivers.modalities.points import Coordinates
from perceivers.runs.recipe import changed_schema
from perceivers.runs.report import add_losses, predict
from perceivers.runs.results import score_of
from perceivers.runs.run import Run
from perceivers.schema import Record, Schema
from perceivers.systems.digits.baselines import baseline_scores
from perceivers.systems.digits.model import SIDE
from perceivers.systems.digits.recipes import EVERYTHING, QUARTER
from perceivers.training.metrics import inference
from perceivers.training.plots import SHOWN, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def report(run: Run) -> Path:
    """Write scores, digits with their input and decoded pixels, and attention maps."""
    # Get the scores of the run, and the model's predictions from a quarter of the pixels.
    right, psnr = (
        [score_of(run.folder, evaluation, *score) for evaluation in (EVERYTHING, QUARTER)]
        for score in (("label", "accuracy"), ("image", "psnr"))
    )
    recipe, model = run.recipe, run.model
    quarter = changed_schema(recipe.schema, recipe.evaluations[QUARTER])
    batch, predictions = predict(model.cpu(), quarter, run.held_out)
    # Write the page: scores, unread pixels against baselines, pictures, attention.
    page = Report("Perceiver IO decodes the class and the whole picture of a digit from some of its pixels")
    page.text("One model, trained on random subsets of pixels as sets of (position, value). These digits are held out.")
    page.heading("Scores")
    page.table(
        ["held-out digits", EVERYTHING, QUARTER],
        {
            "class right": [f"{100 * value:.1f} %" for value in right],
            "PSNR of the whole picture": [f"{value:.1f} dB" for value in psnr],
        },
    )
    ((unread, values),) = baseline_scores(run).items()
    page.table([unread, ""], {name: [f"{value:.1f} dB"] for name, value in values["image"].items()})
    page.heading("Inputs and outputs, with a quarter of the pixels")
    page.figure(draw_samples(model, quarter, batch, predictions), "Each row is a digit; squares mark the input pixels.")
    page.heading("Attention of the latents")
    page.figure(
        draw_attention(model, recipe.schema, run.held_out),
        "Attention of each of eight latents to each pixel at the first read, as the mean over heads; bright is high.",
    )
    add_losses(page, run)
    return page.write(run.folder / "report.html")


def draw_samples(model: PerceiverIO, schema: Schema, batch: dict[str, Any], predictions: dict[str, Any]) -> "Figure":
    """Draw a row for each digit: truth, input, decoded, decoded at four times the resolution, classes."""
    fine = torch.linspace(0, SIDE - 1, 4 * SIDE)
    points = {"image": Coordinates(torch.cartesian_prod(fine, fine))}
    with inference(model):
        encoded = model.encode({"pixels": {k: v[:SHOWN] for k, v in batch["inputs"]["pixels"].items()}})
        finer = model.decode(encoded, points, outputs=["image"])["image"].unflatten(1, (4 * SIDE, 4 * SIDE))

    image, label, pixels = schema.outputs["image"], schema.outputs["label"], schema.inputs["pixels"]
    figure, axes = subplots(SHOWN, ["digit", "input", "decoded", "decoded, 4 x finer", "class"])
    for row in range(SHOWN):
        image.picture(axes[row][0], batch["targets"]["image"][row])
        pixels.picture(axes[row][1], sample_of(batch["inputs"]["pixels"], row))
        image.picture(axes[row][2], predictions["image"][row])
        image.picture(axes[row][3], finer[row])
        label.picture(axes[row][4], predictions["label"][row])
    return figure


def draw_attention(model: PerceiverIO, schema: Schema, records: Sequence[Record]) -> "Figure":
    """Draw a row for each digit: the digit, then the attention of each latent to each pixel."""
    rows, latents = 4, 8
    batch, _ = predict(model, schema.changed("pixels", subsample=(1.0, 1.0)), records[:rows])
    with inference(model):
        maps = model.attention_maps(batch["inputs"])["encoder"]["pixels"].mean(dim=1)
    coordinates = batch["inputs"]["pixels"]["coordinates"].long()
    figure, axes = subplots(rows, ["digit", *(f"latent {number + 1}" for number in range(latents))], side=1.2)
    for row in range(rows):
        schema.outputs["image"].picture(axes[row][0], batch["targets"]["image"][row])
        for latent in range(latents):
            heat = torch.zeros(SIDE, SIDE)
            heat[tuple(coordinates[row].T)] = maps[row, latent]
            axes[row][latent + 1].imshow(heat.numpy(), cmap="magma")
            axes[row][latent + 1].set_axis_off()
    return figure
