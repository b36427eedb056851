"""Metrics of a model or a baseline over records; the modality of each output defines its metrics."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from perceivers.core.perceiver import PerceiverIO
from perceivers.modalities.modality import Modality, Raw
from perceivers.progress import tracked
from perceivers.schema import Batch, Record, Schema
from perceivers.schema.adapters import mask_probs
from perceivers.training.devices import device_of, on_device
from perceivers.training.losses import counts
from perceivers.training.masking import Masking
from perceivers.training.sampler import EvaluationBatches
from perceivers.training.streams import StreamStates

if TYPE_CHECKING:
    from torchmetrics import Metric

Scores = dict[str, dict[str, float]]
"""Values of metrics, by output and by name of the metric."""

Compared = tuple[Any, ...]
"""Predictions and targets in the form that an output's metrics take."""


def evaluate(
    model: PerceiverIO, records: Sequence[Record], schema: Schema | None = None, batch_size: int = 128, seed: int = 0
) -> Scores:
    """Return scores over all records; `schema` preprocesses them (None: the model's), e.g. with other corruptions."""
    schema = schema or cast(Schema, model.schema)
    scores = scored(schema.outputs, answers(model, schema, records, batch_size, seed))
    return {name: scores.get(name, dict.fromkeys(spec.metrics(), math.nan)) for name, spec in schema.outputs.items()}


def answers(
    model: PerceiverIO, schema: Schema, records: Sequence[Record], batch_size: int = 128, seed: int = 0
) -> Iterator[tuple[str, Compared]]:
    """Yield the name of an output with its predictions and targets, for each output of each batch of the records."""
    masking = masking_of(model, schema, seed)
    states = StreamStates()
    for chosen, streams, batch in tracked(EvaluationBatches(schema, records, batch_size, masking), "evaluation"):
        batch = on_device(batch, device_of(model))
        with inference(model):
            encoded = model.encode(batch["inputs"], masking=cast(Any, chosen), latents=states.before(streams))
            states.keep(streams, encoded.latents)
            predictions = model.decode(encoded, schema.points(batch["targets"]))
        yield from metric_inputs(schema, batch, predictions, chosen.first, chosen.numbers)


def masking_of(model: PerceiverIO, schema: Schema, seed: int = 0) -> Masking:
    """Return the masking of an evaluation on this schema; ValueError if the model lacks a mask token that it needs."""
    check_mask_tokens(model.input_adapter.mask_probs, schema.inputs)
    probs = mask_probs(schema.inputs)
    return Masking({name: prob if at_eval else 0.0 for name, (prob, at_eval) in probs.items()}, seed)


def check_mask_tokens(known: Collection[str], inputs: Mapping[str, Modality]) -> None:
    """Raise a ValueError if an evaluation masks an input without a mask token; the inputs in `known` have one."""
    if unknown := [name for name in mask_probs(inputs) if name not in known]:
        raise ValueError(f"{unknown[0]}: cannot be masked in an evaluation, since the model has no mask token of it")


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, in which it stays, and compute no gradients within the context."""
    model.eval()
    with torch.no_grad():
        yield


def metric_inputs(
    schema: Schema, batch: Batch, guesses: Mapping[str, Raw], first: int = 0, numbers: Sequence[int] = ()
) -> Iterator[tuple[str, Compared]]:
    """Yield the name, predictions and targets of each output of a batch that has both.

    Raise a ValueError for a prediction that is not finite. `first` is the number of the batch's first record, if its
    records are not these `numbers`.
    """
    for name in guesses.keys() & batch["targets"].keys():
        check_guesses(name, guesses[name], first, numbers=numbers)
        yield name, schema.outputs[name].metric_inputs(guesses[name], batch["targets"][name])


def check_guesses(output: str, guesses: Raw, first: int = 0, what: str = "record", numbers: Sequence[int] = ()) -> None:
    """Raise a ValueError naming the first sample whose prediction is not finite; `what` is the word for a sample."""
    bad = not_finite(guesses).nonzero()
    if len(bad):
        number = numbers[int(bad[0])] if numbers else first + int(bad[0])
        raise ValueError(f"{output}: the prediction of {what} {number + 1} is not finite")


def not_finite(raw: Raw) -> Bool[Tensor, " b"]:
    """Return a mask [B] of the samples of a raw batch that hold NaN or an infinite number."""
    leaves = list(raw.values()) if isinstance(raw, Mapping) else [raw]
    bad = [not_finite(leaf) if isinstance(leaf, Mapping) else ~leaf.isfinite() for leaf in leaves]
    return torch.stack([flags.flatten(1).any(dim=1) if flags.ndim > 1 else flags for flags in bad]).any(dim=0)


def guess_scores(schema: Schema, batches: Iterable[Batch], guess: Callable[[Batch], Mapping[str, Raw]]) -> Scores:
    """Return the scores of a baseline on these batches, for the outputs that it predicts."""
    return scored(schema.outputs, (pair for batch in batches for pair in metric_inputs(schema, batch, guess(batch))))


def scored(outputs: Mapping[str, Modality], pairs: Iterable[tuple[str, Compared]]) -> Scores:
    """Return the metrics of each output over all its predictions and targets; outputs without targets are left out."""
    metrics: dict[str, Mapping[str, Metric]] = {}
    for name, pair in pairs:
        if not len(pair[1]):
            continue
        if name not in metrics:
            metrics[name] = {key: metric.to(pair[0].device) for key, metric in outputs[name].metrics().items()}
        for metric in metrics[name].values():
            metric.update(*pair)
    return {name: {key: float(metric.compute()) for key, metric in each.items()} for name, each in metrics.items()}


def gathered(pairs: Iterable[tuple[str, Compared]]) -> dict[str, Compared]:
    """Concatenate the pairs of each output into one pair of tensors of all records, on the CPU."""
    by_output: dict[str, list[Compared]] = defaultdict(list)
    for name, pair in pairs:
        by_output[name].append(pair)
    return {name: tuple(torch.cat(side).cpu() for side in zip(*each, strict=True)) for name, each in by_output.items()}


@contextmanager
def evaluating(learner: nn.Module) -> Iterator[None]:
    """Put a training module into evaluation mode without gradients; then back, with its weights sharded again.

    A forward pass gathers sharded parameters into whole tensors, and only a backward pass would shard them again. Until
    then their state cannot be saved.
    """
    learner.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        learner.train()
        for module in learner.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def validation_loss(learner: Any, records: Sequence[Record], batch_size: int) -> float:
    """Return the training loss over all records, as if they were one batch. With sharding, every process must call it.

    Raise a ValueError if no record has a target: its loss of 0 would be the best of all checkpoints.
    """
    schema, names = learner.schema, learner.names
    sums = torch.zeros(len(names), dtype=torch.double)
    counted = torch.zeros_like(sums)
    with evaluating(learner):
        masking, states = masking_of(learner.model, schema), StreamStates()
        for chosen, streams, batch in EvaluationBatches(schema, records, batch_size, masking):
            # A loss is a mean over elements: weight each batch with the number of its elements.
            on = on_device(batch, device_of(learner))
            if streams:
                losses, latents = learner.carried(on, chosen, states.before(streams))
                states.keep(streams, latents)
            else:
                losses = learner(on, chosen)
            count = counts(learner, batch, torch.device("cpu"))
            counted += count
            for index, name in enumerate(names):
                sums[index] += count[index] * losses[name].item() if name in losses else 0.0
    if not counted[: len(schema.outputs)].any():
        raise ValueError(f"none of the {len(records)} validation records has a target: change validation_fraction")
    return float((sums / counted.clamp(min=1)).sum())


def batch_loss(learner: Any, batch: Batch) -> float:
    """Return the total loss of a training batch in evaluation mode, so without dropout."""
    with evaluating(learner):
        losses = learner(batch, masking_of(learner.model, learner.schema))
        return float(sum(loss.item() for loss in losses.values()))
