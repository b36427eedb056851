"""The HTML report of a run: scores, samples, and losses over the steps."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from perceivers.core.perceiver import PerceiverIO
from perceivers.media.drawing import drawable
from perceivers.media.html_report import Report
from perceivers.runs.results import read_scores
from perceivers.runs.run import Run
from perceivers.schema import Record, Schema
from perceivers.training.logging import read_log
from perceivers.training.metrics import Scores, inference, masking_of
from perceivers.training.plots import SHOWN, draw_samples, subplots
from perceivers.training.sampler import evaluation_batches
from perceivers.training.streams import predict_in_turn, stream_names


def report(run: Run) -> Path:
    """Write report.html into the folder of a run that has been evaluated."""
    schema = run.recipe.schema
    page = Report(f"Run {run.folder.name}")
    add_score_table(page, run)
    batch, predictions = predict(run.model.cpu(), schema, run.held_out[:SHOWN])
    page.heading("Held-out samples")
    page.figure(draw_samples(schema, batch, predictions), "Inputs, then the target and the prediction of each output.")
    add_losses(page, run)
    return page.write(run.folder / "report.html")


def add_score_table(page: Report, run: Run) -> None:
    """Add a table of all metrics: one row per metric, one column per evaluation."""
    scores = read_scores(run.folder)
    page.heading("Scores")
    measured = {(o, m): None for outputs in scores.values() for o, metrics in outputs.items() for m in metrics}
    rows = {
        f"{output}, {metric}": [_shown(evaluation.get(output, {}).get(metric)) for evaluation in scores.values()]
        for output, metric in measured
    }
    page.table(["output, metric", *scores], rows)


def scores_by_lead(run: Run, model: str) -> dict[str, Scores]:
    """Return the kept scores by lead time, of the model (named `model`) and the baselines; {} before an evaluation."""
    kept = read_scores(run.folder)
    return {name: each for name, each in kept.items() if name != "held out"} if model in kept else {}


def add_errors_by_lead(page: Report, scores: Mapping[str, Scores]) -> None:
    """Add a table of the errors for all variables together and for each, and a curve for each name."""
    page.heading("Root mean square error by lead time")
    outputs = {output: list(leads) for output, leads in next(iter(scores.values())).items()}
    for output, leads in outputs.items():
        page.table([output, *leads], {n: [f"{each[output][lead]:.3f}" for lead in leads] for n, each in scores.items()})
    figure, (axes,) = subplots(1, list(outputs)[:2], side=5.0)
    for axis, (output, leads) in zip(axes, outputs.items(), strict=False):
        for name, each in scores.items():
            axis.plot(range(len(leads)), [each[output][lead] for lead in leads], marker="o", label=drawable(name))
        axis.set_xticks(range(len(leads)), leads)
        axis.set_ylim(0)
        axis.legend()
    page.figure(figure, "Root mean square error by lead time; lower is better.")


def add_losses(page: Report, run: Run) -> None:
    """Add curves of the training losses and of their learned weights over the steps."""
    lines = cast(list[dict[str, Any]], read_log(run.folder))
    curves = {"losses": "training loss", "weights": "learned weight"}
    curves = {key: title for key, title in curves.items() if any(line.get(key) for line in lines)}
    if not curves:
        return
    figure, (row,) = subplots(1, list(curves.values()), side=5.0)
    for key, axes in zip(curves, row, strict=True):
        for name in dict.fromkeys(name for line in lines for name in line.get(key, ())):
            values = [line.get(key, {}).get(name, torch.nan) for line in lines]
            axes.plot([line["step"] for line in lines], values, label=name)
        axes.set_yscale("log")
        axes.legend()
    page.heading("Losses")
    page.figure(figure, "Losses of a training batch, under their fixed weights.")


def predict(model: PerceiverIO, schema: Schema, records: Sequence[Record]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return all these records as one batch, and the model's predictions for the batch.

    In a model that carries a state on, each stream begins with the first of its records here.
    """
    batch = next(iter(evaluation_batches(schema, records, batch_size=len(records))))
    streams = stream_names(records, schema)
    with inference(model):
        if streams:
            return batch, predict_in_turn(model, batch, streams, masking=masking_of(model, schema))
        return batch, model(batch["inputs"], schema.points(batch["targets"]), masking=masking_of(model, schema))


def _shown(score: float | None) -> str:
    return "" if score is None or not math.isfinite(score) else f"{score:.4g}"
