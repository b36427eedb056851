"""Plots of samples: inputs, targets and predictions, each drawn by its modality."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perceivers.media.drawing import drawable
from perceivers.modalities.modality import sample_of
from perceivers.schema import Schema

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 6
"""Number of samples in a report."""


def draw_samples(schema: Schema, batch: Mapping[str, Any], predictions: Mapping[str, Any]) -> "Figure":
    """Draw one row per sample: the inputs, then the target and the prediction of each output."""
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
            spec.picture(next(columns), spec.for_plot(prediction, target))
    return figure


def subplots(rows: int, titles: Sequence[str], side: float = 1.6) -> "tuple[Figure, Any]":
    """Return a figure and its axes [rows, titles], with a title above each column; `side` of an axis in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side * len(titles), side * rows), layout="constrained")
    axes = figure.subplots(rows, len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(drawable(title), fontsize=10)
    return figure, axes


def _tensors(batch: Any) -> Any:
    for value in batch.values():
        yield from _tensors(value) if isinstance(value, Mapping) else [value]
