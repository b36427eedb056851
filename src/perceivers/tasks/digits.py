"""Reads some pixels of a handwritten digit as a set, writes its class and the picture at any position asked.

Run: `perceivers train digits --out runs/digits` (about two minutes on two cores). Expect 97 % with all pixels read.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.interfaces import Coordinates
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.positions import Fourier
from perceivers.data import Digits
from perceivers.media.html_report import Report
from perceivers.modalities import Image, Label, PointSet
from perceivers.modalities.kind import sample_of
from perceivers.schema import Record, Schema
from perceivers.tasks.recipe import Recipe, changed_schema, load_run
from perceivers.tasks.report import add_losses, predict
from perceivers.tasks.results import score_of
from perceivers.training.metrics import Scores, inference
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig
from perceivers.training.plots import SHOWN, subplots
from perceivers.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 8
EVERYTHING, QUARTER = "all pixels read", "a quarter of the pixels read"


def recipe() -> Recipe:
    """A small Perceiver IO: one set in, two structures out of the same latents."""
    positions = Fourier(num_bands=8, max_resolution=SIDE)
    return Recipe(
        data=Digits(),
        schema=Schema(
            inputs={"pixels": PointSet(axes=2, channels=1, positions=positions, keep=(0.1, 1.0), keep_at_eval=True)},
            outputs={
                "label": Label(classes=10, query_channels=64),
                "image": Image(size=SIDE, channels=1, positions=positions),
            },
        ),
        config=Config(
            latents=LatentsConfig(num_latents=16, channels=96),
            encoder=EncoderConfig(num_heads=4),
            processor=ProcessorConfig(num_layers=4, num_heads=4),
            decoder=DecoderConfig(num_heads=4),
        ),
        training=TrainingConfig(
            num_steps=1800,
            batch_size=64,
            optimiser=OptimiserConfig(kind="adamw", learning_rate=2e-3, weight_decay=0.05, max_norm=1.0),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=50),
        ),
        evaluations={
            EVERYTHING: {"pixels": {"keep": [1.0, 1.0]}},
            QUARTER: {"pixels": {"keep": [0.25, 0.25]}},
        },
    )


def further_scores(run: Path) -> dict[str, Scores]:
    """PSNR of the pixels that were not read when a quarter was: the model's, beside two plain guesses."""
    own, model = load_run(run)
    quarter = changed_schema(own.schema, own.evaluations[QUARTER])
    batch, predictions = predict(model.cpu(), quarter, own.data.held_out())
    unread = psnr_of_unread(own.data.training(), batch, predictions["image"])
    return {f"unread pixels, {QUARTER}": {"image": {f"psnr of {name}": value for name, value in unread.items()}}}


def report(run: Path) -> Path:
    """Scores, and what a person wants to see: read, written, written four times as fine, attended to."""
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
    ((unread, values),) = further_scores(run).items()
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


def psnr_of_unread(training: Sequence[Record], batch: dict[str, Any], images: torch.Tensor) -> dict[str, float]:
    """PSNR [dB] of the pixels that were not read: the model's, the mean image's, the nearest read pixel's."""
    read = batch["inputs"]["pixels"]
    truth = batch["targets"]["image"][..., 0].numpy()
    unread = np.ones_like(truth, bool)
    nearest = np.empty_like(truth)
    every = np.moveaxis(np.indices((SIDE, SIDE)), 0, -1).reshape(-1, 2)
    for number, mask in enumerate(read["mask"].numpy()):
        places, values = (read[name][number].numpy()[mask] for name in ("coordinates", "values"))
        unread[(number, *places.astype(int).T)] = False
        distance = ((every[:, None] - places[None]) ** 2).sum(-1)
        nearest[number] = values[distance.argmin(1), 0].reshape(SIDE, SIDE)
    mean = np.mean([record["image"] for record in training], axis=0)
    guesses = {
        "the model": images[..., 0].numpy(),
        "the mean image": np.broadcast_to(mean, truth.shape),
        "the nearest read pixel": nearest,
    }
    return {name: _psnr(guess[unread], truth[unread]) for name, guess in guesses.items()}


def draw_samples(model: PerceiverIO, schema: Schema, batch: dict[str, Any], predictions: dict[str, Any]) -> "Figure":
    """A row for each digit: the whole, what was read, what was written, that at four times the resolution, classes."""
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
    """A row for each digit: the digit, then how much a latent takes from each of its pixels."""
    rows, latents = 4, 8
    batch, _ = predict(model, schema.changed("pixels", keep=(1.0, 1.0)), records[:rows])
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


def _psnr(guess: np.ndarray, truth: np.ndarray, value_range: float = 16.0) -> float:
    return float(10 * np.log10(value_range**2 / np.mean((guess - truth) ** 2)))


RECIPES: dict[str, Callable[[], Recipe]] = {"digits": recipe}
"""By name on the command line."""
