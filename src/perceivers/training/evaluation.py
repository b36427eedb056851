"""Metrics of a model over records, as its outputs' kinds define them."""

from collections.abc import Sequence
from typing import Any, cast

import torch

from perceivers.core.perceiver import PerceiverIO
from perceivers.schema import Record, Schema
from perceivers.training.order import evaluation_batches
from perceivers.training.progress import progress_bar

Scores = dict[str, dict[str, float]]
"""Metric by name, of each output by name."""


@torch.no_grad()
def evaluate(
    model: PerceiverIO, records: Sequence[Record], schema: Schema | None = None, batch_size: int = 128, seed: int = 0
) -> Scores:
    """Scores over all records; `schema` prepares them (None: the model's own), e.g. with another corruption."""
    from lightning.fabric.utilities import move_data_to_device  # an extra, and slow to import

    schema = schema or cast(Schema, model.schema)
    device = next(model.parameters()).device
    metrics = {name: spec.metrics() for name, spec in schema.outputs.items()}
    batches = evaluation_batches(schema, records, batch_size, seed)
    model.eval()
    with progress_bar() as progress:
        task = progress.add_task("evaluation", total=len(batches), note="")
        for batch in batches:
            batch = move_data_to_device(batch, device)
            predictions = model(batch["inputs"], schema.points(batch["targets"]))
            for name in predictions.keys() & batch["targets"].keys():
                compared = schema.outputs[name].compared(predictions[name], batch["targets"][name])
                for metric in metrics[name].values():
                    metric.to(device).update(*compared)
            progress.advance(task)
    return {name: {key: _value(metric) for key, metric in own.items()} for name, own in metrics.items()}


def _value(metric: Any) -> float:
    return float(metric.compute()) if metric.update_called else float("nan")
