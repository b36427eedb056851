"""The report of a run on digits."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from perceivers.core.perceiver import PerceiverIO
from perceivers.media.html_report import Report
from perceivers.modalities.modality import sample_of
from perceivers.modalities.points import Coordinates
from perceivers.runs.recipe import changed_schema, load_run
from perceivers.runs.report import add_losses, predict
from perceivers.runs.results import score_of
from perceivers.schema import Record, Schema
from perceivers.training.metrics import inference
from perceivers.training.plots import SHOWN, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from perceivers.systems.digits.baselines import baseline_scores
from perceivers.systems.digits.model import SIDE
from perceivers.systems.digits.recipes import EVERYTHING, QUARTER


def report(run: Path) -> Path:
    """Write scores and pictures: pixels read, written, written four times as fine, attended to."""
    right, psnr = (
        [score_of(run, evaluation, *score) for evaluation in (EVERYTHING, QUARTER)]
        for score in (("label", "accuracy"), ("image", "psnr"))
    )
    own, model = load_run(run)
    quarter = changed_schema(own.schema, own.evaluations[QUARTER])
    batch, predictions = predict(model.cpu(), quarter, own.data.held_out())

    page = Report("Perceiver IO reads some pixels of a digit and writes its class and the whole picture")
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
    page.heading("Read and written, with a quarter of the pixels")
    page.figure(draw_samples(model, quarter, batch, predictions), "A digit a row; a pixel is read where a square is.")
    page.heading("What the latents look at")
    page.figure(
        draw_attention(model, own.schema, own.data.held_out()),
        "How much each of eight latents takes from each pixel at the first read; the mean over heads, bright is much.",
    )
    add_losses(page, run)
    return page.write(run / "report.html")


def draw_samples(model: PerceiverIO, schema: Schema, batch: dict[str, Any], predictions: dict[str, Any]) -> "Figure":
    """Draw a row for each digit: true, read, written, written at four times the resolution, classes."""
    fine = torch.linspace(0, SIDE - 1, 4 * SIDE)
    points = {"image": Coordinates(torch.cartesian_prod(fine, fine))}
    with inference(model):
        encoded = model.encode({"pixels": {k: v[:SHOWN] for k, v in batch["inputs"]["pixels"].items()}})
        finer = model.decode(encoded, points, outputs=["image"])["image"].unflatten(1, (4 * SIDE, 4 * SIDE))

    image, label, pixels = schema.outputs["image"], schema.outputs["label"], schema.inputs["pixels"]
    figure, axes = subplots(SHOWN, ["digit", "read", "written", "written, 4 x finer", "class"])
    for row in range(SHOWN):
        image.picture(axes[row][0], batch["targets"]["image"][row])
        pixels.picture(axes[row][1], sample_of(batch["inputs"]["pixels"], row))
        image.picture(axes[row][2], predictions["image"][row])
        image.picture(axes[row][3], finer[row])
        label.picture(axes[row][4], predictions["label"][row])
    return figure


def draw_attention(model: PerceiverIO, schema: Schema, records: Sequence[Record]) -> "Figure":
    """Draw a row for each digit: the digit, then how much attention a latent pays to each of its pixels."""
    rows, latents = 4, 8
    batch, _ = predict(model, schema.changed("pixels", subsample=(1.0, 1.0)), records[:rows])
    with inference(model):
        maps = model.attention_maps(batch["inputs"])["encoder"]["pixels"].mean(dim=1)
    places = batch["inputs"]["pixels"]["coordinates"].long()
    figure, axes = subplots(rows, ["digit", *(f"latent {number + 1}" for number in range(latents))], side=1.2)
    for row in range(rows):
        schema.outputs["image"].picture(axes[row][0], batch["targets"]["image"][row])
        for latent in range(latents):
            heat = torch.zeros(SIDE, SIDE)
            heat[tuple(places[row].T)] = maps[row, latent]
            axes[row][latent + 1].imshow(heat.numpy(), cmap="magma")
            axes[row][latent + 1].set_axis_off()
    return figure
