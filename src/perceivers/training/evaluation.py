"""Metrics of a model over records, as its outputs' kinds define them."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from perceivers.core.perceiver import PerceiverIO
from perceivers.schema import Record, Schema
from perceivers.training.objective import counts
from perceivers.training.order import evaluation_batches
from perceivers.training.progress import progress_bar

Scores = dict[str, dict[str, float]]
"""Metric by name, of each output by name."""


@torch.no_grad()
def evaluate(
    model: PerceiverIO, records: Sequence[Record], schema: Schema | None = None, batch_size: int = 128, seed: int = 0
) -> Scores:
    """Scores over all records; `schema` prepares them (None: the model's own), e.g. with another corruption."""
    schema = schema or cast(Schema, model.schema)
    device = device_of(model)
    metrics = {name: spec.metrics() for name, spec in schema.outputs.items()}
    batches = evaluation_batches(schema, records, batch_size, seed)
    measured: set[str] = set()  # metrics within others do not know themselves whether they were updated
    model.eval()
    with progress_bar() as progress:
        task = progress.add_task("evaluation", total=len(batches), note="")
        for batch in batches:
            batch = on_device(batch, device)
            predictions = model(batch["inputs"], schema.points(batch["targets"]))
            for name in predictions.keys() & batch["targets"].keys():
                measured.add(name)
                compared = schema.outputs[name].compared(predictions[name], batch["targets"][name])
                for metric in metrics[name].values():
                    metric.to(device).update(*compared)
            progress.advance(task)
    return {
        name: {key: float(metric.compute()) if name in measured else float("nan") for key, metric in own.items()}
        for name, own in metrics.items()
    }


@torch.no_grad()
def validation_loss(learner: Any, records: Sequence[Record], batch_size: int) -> float:
    """The training loss over all records, as if they were one batch; in sharded training every process computes it."""
    schema = learner.schema
    sums = torch.zeros(len(schema.outputs), dtype=torch.double)
    counted = torch.zeros_like(sums)
    learner.eval()
    for batch in evaluation_batches(schema, records, batch_size):
        losses = learner(on_device(batch, device_of(learner)))
        count = counts(schema, batch, torch.device("cpu"))
        counted += count
        for number, name in enumerate(schema.outputs):
            sums[number] += count[number] * losses[name].item() if name in losses else 0.0
    learner.train()
    return float((sums / counted.clamp(min=1)).sum())


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on this device."""
    from lightning.fabric.utilities import move_data_to_device  # an extra, and slow to import

    return move_data_to_device(batch, device)


def device_of(module: nn.Module) -> torch.device:
    """Where the parameters of a module are."""
    return next(module.parameters()).device
