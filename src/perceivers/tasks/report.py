"""The report of any run: scores, losses over the steps, and samples as their kinds draw them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from perceivers.core.perceiver import PerceiverIO
from perceivers.data.sifting import read_held_out
from perceivers.media.report import Report
from perceivers.modalities.kind import sample_of
from perceivers.schema import Record, Schema
from perceivers.storage import read_json
from perceivers.tasks.recipe import METRICS, load_run
from perceivers.training.evaluation import Scores
from perceivers.training.loop import read_log
from perceivers.training.order import evaluation_batches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 6
"""Samples of a report."""


def report(run: Path) -> Path:
    """Write report.html into the folder of a run that has been evaluated."""
    recipe, model = load_run(run)
    page = Report(f"Run {run.name}")
    add_scores(page, run)
    batch, predictions = predict(model.cpu(), recipe.schema, read_held_out(recipe.data, recipe.schema)[:SHOWN])
    page.heading("Samples, held out")
    page.figure(
        draw_samples(recipe.schema, batch, predictions), "Inputs; then of each output what is true and written."
    )
    add_losses(page, run)
    return page.write(run / "report.html")


def add_scores(page: Report, run: Path) -> None:
    """Every metric of every evaluation."""
    scores = cast(dict[str, Scores], read_json(run / METRICS))
    page.heading("Scores")
    rows = {
        f"{output}, {metric}": [f"{evaluation[output][metric]:.4g}" for evaluation in scores.values()]
        for output, metrics in next(iter(scores.values())).items()
        for metric in metrics
    }
    page.table(["output, metric", *scores], rows)


def add_losses(page: Report, run: Path) -> None:
    """Each output's training loss over the steps."""
    lines = read_log(run)
    if not lines:
        return
    figure, ((axes,),) = subplots(1, ["training loss"], side=5.0)
    for name in lines[0]["losses"]:
        axes.plot([line["step"] for line in lines], [line["losses"].get(name, torch.nan) for line in lines], label=name)
    axes.set_yscale("log")
    axes.legend()
    page.heading("Losses")
    page.figure(figure, "Weighted loss of each output, a batch at a time.")


def predict(model: PerceiverIO, schema: Schema, records: Sequence[Record]) -> tuple[dict[str, Any], dict[str, Any]]:
    """One batch of all these records, and what the model makes of it."""
    batch = next(iter(evaluation_batches(schema, records, batch_size=len(records))))
    with torch.no_grad():
        return batch, model(batch["inputs"], schema.points(batch["targets"]))


def draw_samples(schema: Schema, batch: Mapping[str, Any], predictions: Mapping[str, Any]) -> "Figure":
    """A row for each sample: its inputs, then each output's target and prediction."""
    inputs = [name for name in schema.inputs if name in batch["inputs"]]
    outputs = [name for name in schema.outputs if name in batch["targets"] and name in predictions]
    titles = [*inputs, *(title for name in outputs for title in (f"{name}: true", f"{name}: written"))]
    rows = len(next(iter(_tensors(batch))))
    figure, axes = subplots(rows, titles)
    for row in range(rows):
        columns = iter(axes[row])
        for name in inputs:
            schema.inputs[name].picture(next(columns), sample_of(batch["inputs"][name], row))
        for name in outputs:
            target, prediction = (sample_of(side[name], row) for side in (batch["targets"], predictions))
            spec = schema.outputs[name]
            spec.picture(next(columns), target)
            spec.picture(next(columns), spec.beside(prediction, target))
    return figure


def subplots(rows: int, titles: Sequence[str], side: float = 1.6) -> "tuple[Figure, Any]":
    """A figure and its axes [rows, titles], a title above each column; `side` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side * len(titles), side * rows), layout="constrained")
    axes = figure.subplots(rows, len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    return figure, axes


def _tensors(batch: Any) -> Any:
    for value in batch.values():
        yield from _tensors(value) if isinstance(value, Mapping) else [value]
