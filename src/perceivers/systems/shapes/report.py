"""The report of a run on shapes: surfaces, and samples of the bottleneck."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float

from perceivers.core.perceiver import PerceiverIO
from perceivers.core.reading import Encoded
from perceivers.data import Shapes
from perceivers.data.shapes import HELD_OUT, Posed
from perceivers.media.html_report import Report
from perceivers.modalities.points import Coordinates
from perceivers.runs.report import add_losses, add_score_table
from perceivers.runs.run import Run
from perceivers.schema import Record
from perceivers.systems.shapes.baselines import behind_nearest
from perceivers.training.metrics import inference
from perceivers.training.plots import subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Field = Callable[[Float[np.ndarray, "p 3"]], Float[np.ndarray, " p"]]
"""Function of points that is positive inside a shape, and negative or 0 outside."""

SIDE = 48
"""Number of pixels along each side of a picture, and of points along each line of sight."""

SHOWN, FITTED = 6, 256
"""Number of held-out shapes that are drawn; number of training shapes whose codes a distribution is fitted to."""

STEPS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Places between two shapes that are drawn."""

TURN, TILT = np.radians(35.0), np.radians(25.0)
"""The angle from which shapes are seen, around z and above the x-y plane."""


def report(run: Run) -> Path:
    """Write scores with those of the baselines, surfaces of held-out shapes, and samples of the bottleneck."""
    data, model, records = run.recipe.data, run.model.cpu(), run.held_out
    assert isinstance(data, Shapes)
    page = Report(f"Shapes: run {run.folder.name}")
    add_score_table(page, run)
    page.heading("Held-out shapes")
    shown = range(min(SHOWN, len(records)))
    page.figure(
        draw_shapes(model, [records[number] for number in shown], [data.shape(HELD_OUT, number) for number in shown]),
        "The noisy points that are the input, then the true shape, the model's, and that of estimated normals.",
    )
    page.heading("Between two shapes")
    page.figure(
        draw_between(model, [(records[number], records[number + 1]) for number in shown[:-1:2]]),
        "Each latent of the first shape moves to one of the second; these pairs have the least total distance.",
    )
    page.heading("Samples of the bottleneck")
    page.figure(
        draw_samples_of(model, [records[number] for number in shown[:3]]),
        "A shape decoded from the means, then from samples of its own distribution.",
    )
    fit_to = [data.training()[number]["surface"] for number in range(min(FITTED, data.num_training))]
    page.figure(
        draw_invented(model, fit_to),
        f"New shapes: draws of a normal distribution, fitted to the codes of {len(fit_to)} training shapes.",
    )
    add_losses(page, run)
    return page.write(run.folder / "report.html")


def draw_shapes(model: PerceiverIO, records: Sequence[Record], shapes: Sequence[Posed]) -> "Figure":
    """Draw a row for each shape: its noisy points, then its surface, the model's and that of estimated normals."""
    figure, axes = subplots(len(records), ["input", "true", "model", "normals"], side=2.0)
    encoded = encode(model, [record["surface"] for record in records])
    for row, (record, shape) in enumerate(zip(records, shapes, strict=True)):
        surface = record["surface"]
        show_points(axes[row][0], surface)
        show_surface(axes[row][1], signed(shape.inside))
        show_surface(axes[row][2], field_of(model, encoded, row))
        show_surface(axes[row][3], signed(partial(behind_nearest, surface)))
    return figure


def draw_between(model: PerceiverIO, pairs: Sequence[tuple[Record, Record]]) -> "Figure":
    """Draw a row for each pair of shapes: the way from the codes of the first to those of the second."""
    figure, axes = subplots(len(pairs), [f"{step:.1f}" for step in STEPS], side=2.0)
    for row, pair in zip(axes, pairs, strict=True):
        encoded = encode(model, [record["surface"] for record in pair])
        first, second = encoded.posterior.mean
        second = second[matched(first, second)]
        codes = torch.stack([(1 - step) * first + step * second for step in STEPS])
        show_codes(row, model, encoded, codes)
    return figure


def draw_samples_of(model: PerceiverIO, records: Sequence[Record], count: int = 3) -> "Figure":
    """Draw a row for each shape: decoded from the means of its bottleneck, then from samples."""
    figure, axes = subplots(len(records), ["means", *["sample"] * count], side=2.0)
    encoded = encode(model, [record["surface"] for record in records])
    generator = torch.Generator().manual_seed(0)
    for column in range(count + 1):
        drawn = encoded if not column else encoded.sample(generator)
        for row in range(len(records)):
            show_surface(axes[row][column], field_of(model, drawn, row))
    return figure


def draw_invented(model: PerceiverIO, surfaces: Sequence[Float[np.ndarray, "m 3"]], rows: int = 1) -> "Figure":
    """Draw new shapes: the codes of others, matched to those of the first, are fitted by a normal distribution."""
    figure, axes = subplots(rows, [""] * len(STEPS), side=2.0)
    encoded = encode(model, surfaces)
    codes = encoded.posterior.mean
    aligned = torch.stack([each[matched(codes[0], each)] for each in codes]).flatten(1)
    mean, generator = aligned.mean(0), torch.Generator().manual_seed(0)
    # Weighted sums of the deviations of all shapes have their covariance.
    weights = torch.randn(rows * len(STEPS), len(aligned), generator=generator) / np.sqrt(max(len(aligned) - 1, 1))
    drawn = (mean + weights @ (aligned - mean)).unflatten(1, codes.shape[1:])
    show_codes(axes.flatten(), model, encoded, drawn)
    return figure


def show_codes(
    axes: "Sequence[Axes]", model: PerceiverIO, encoded: Encoded, codes: Float[torch.Tensor, "k n z"]
) -> None:
    """Draw the surface that each sample of the bottleneck is decoded to."""
    assert encoded.around is not None
    around = replace(encoded.around, array=encoded.around.array[:1], mask=None)
    with inference(model):
        decoded = Encoded.of(encoded.trunk.redrawn(around, codes), encoded.sources, encoded.trunk)
    for number, cell in enumerate(axes):
        show_surface(cell, field_of(model, decoded, number))


def encode(model: PerceiverIO, surfaces: Sequence[Float[np.ndarray, "m 3"]]) -> Encoded:
    """Encode the noisy points of some shapes."""
    with inference(model):
        return model.encode({"surface": torch.from_numpy(np.stack(surfaces))})


def field_of(model: PerceiverIO, encoded: Encoded, number: int) -> Field:
    """Return the logit of being inside one encoded shape as a function of points."""
    around = encoded.around
    assert around is not None
    mask = around.mask if around.mask is None else around.mask[number : number + 1]
    one = Encoded.of(replace(around, array=around.array[number : number + 1], mask=mask, posterior=None), {})

    def field(points: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, " p"]:
        with inference(model):
            return model.decode(one, {"inside": Coordinates(points.astype(np.float32))})["inside"][0, :, 0].numpy()

    return field


def matched(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the numbers of the second codes in the order of the first that gives the least sum of squared distances.

    Latents taken from points have no order: their places are in their codes.
    """
    from scipy.optimize import linear_sum_assignment

    _, order = linear_sum_assignment(torch.cdist(first, second).square().numpy())
    return torch.from_numpy(order)


def signed(inside: Callable[[Float[np.ndarray, "p 3"]], Bool[np.ndarray, " p"]]) -> Field:
    """Return the field that is 1 inside and -1 outside."""
    return lambda points: np.where(inside(points), 1.0, -1.0)


def view() -> Float[np.ndarray, "3 3"]:
    """Return the axes of a picture as rows: to the right, upwards, and away from the eye."""
    right = np.array([np.cos(TURN), np.sin(TURN), 0.0])
    away = np.array([-np.sin(TURN) * np.cos(TILT), np.cos(TURN) * np.cos(TILT), -np.sin(TILT)])
    return np.stack([right, np.cross(right, away), away])


def show_points(axes: "Axes", surface: Float[np.ndarray, "m 3"]) -> None:
    """Draw points from the angle from which surfaces are drawn; near points are dark."""
    right, up, away = view() @ surface.T
    axes.scatter(right, up, c=away, s=3, cmap="gray", vmin=-1.5, vmax=1.5)
    axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal")
    axes.set_axis_off()


def show_surface(axes: "Axes", field: Field) -> None:
    """Draw the surface of a field as seen from an angle, shaded by a lamp behind the eye."""
    axes.imshow(rendered(field), cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
    axes.set_axis_off()


def rendered(field: Field) -> Float[np.ndarray, "h w"]:
    """Return a picture of where parallel lines of sight first meet the inside; 1 where they do not."""
    from scipy.ndimage import gaussian_filter

    # The field on a grid [away, up, right] along the axes of the picture, which holds the whole cube from any angle.
    line = np.linspace(-1.3, 1.3, SIDE)
    away, up, right = np.meshgrid(line, line[::-1], line, indexing="ij")
    points = np.stack([right, up, away], -1).reshape(-1, 3) @ view()
    inside = np.abs(points).max(axis=1) <= 1
    flat = np.full(len(points), -1.0)
    flat[inside] = np.tanh(field(points[inside]))
    values = flat.reshape(SIDE, SIDE, SIDE)
    # Where each line of sight enters; the surface faces against the gradient of the smoothed field.
    met = values > 0
    depth = met.argmax(axis=0)
    pixel = (depth, *np.indices(depth.shape))
    gradient = np.stack([axis[pixel] for axis in np.gradient(gaussian_filter(values, 1.0))])
    facing = gradient[0] / np.maximum(np.linalg.norm(gradient, axis=0), 1e-9)
    return np.where(met.any(axis=0), 0.15 + 0.7 * facing.clip(0, 1), 1.0)
