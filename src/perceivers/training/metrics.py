"""Metrics of a model, or of a baseline, over records, as the outputs' kinds define them."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from perceivers.core.adapters import mask_probs
from perceivers.core.perceiver import PerceiverIO
from perceivers.modalities.modality import Modality, Raw
from perceivers.progress import tracked
from perceivers.schema import Batch, Record, Schema
from perceivers.training.devices import device_of, on_device
from perceivers.training.losses import counts
from perceivers.training.masking import Masking
from perceivers.training.sampler import evaluation_batches

if TYPE_CHECKING:
    from torchmetrics import Metric

Scores = dict[str, dict[str, float]]
"""Metric by name, of each output by name."""

Compared = tuple[Any, ...]
"""Predictions and truth, as an output's metrics take them."""


def evaluate(
    model: PerceiverIO, records: Sequence[Record], schema: Schema | None = None, batch_size: int = 128, seed: int = 0
) -> Scores:
    """Scores over all records; `schema` prepares them (None: the model's own), e.g. with another corruption."""
    schema = schema or cast(Schema, model.schema)
    found = scored(schema.outputs, answers(model, schema, records, batch_size, seed))
    return {name: found.get(name, dict.fromkeys(spec.metrics(), math.nan)) for name, spec in schema.outputs.items()}


def answers(
    model: PerceiverIO, schema: Schema, records: Sequence[Record], batch_size: int = 128, seed: int = 0
) -> Iterator[tuple[str, Compared]]:
    """Yield predictions and truth of all records, by output, a batch at a time."""
    masking = masking_of(model, schema, seed)
    for number, batch in enumerate(tracked(evaluation_batches(schema, records, batch_size, seed), "evaluation")):
        batch, first = on_device(batch, device_of(model)), number * batch_size
        with inference(model):
            written = model(batch["inputs"], schema.points(batch["targets"]), masking=masking._replace(first=first))
        yield from metric_inputs(schema, batch, written, first)


def masking_of(model: PerceiverIO, schema: Schema, seed: int = 0) -> Masking:
    """Return how tokens are masked in an evaluation on this schema; ValueError if the model lacks the mask token."""
    check_mask_tokens(model.input_adapter.mask_probs, schema.inputs)
    probs = mask_probs(schema.inputs)
    return Masking({name: prob if at_eval else 0.0 for name, (prob, at_eval) in probs.items()}, seed)


def check_mask_tokens(known: Collection[str], inputs: Mapping[str, Modality]) -> None:
    """Raise a ValueError if an evaluation on these inputs masks one without a mask token; `known` have one."""
    if unknown := [name for name in mask_probs(inputs) if name not in known]:
        raise ValueError(f"{unknown[0]}: cannot be masked in an evaluation, since the model has no mask token of it")


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, in which it stays; within, no gradients are computed."""
    model.eval()
    with torch.no_grad():
        yield


def metric_inputs(
    schema: Schema, batch: Batch, guesses: Mapping[str, Raw], first: int = 0
) -> Iterator[tuple[str, Compared]]:
    """Yield predictions and targets of each output of a batch that has both.

    ValueError for a guess that is not finite; `first` is the number of the batch's first record.
    """
    for name in guesses.keys() & batch["targets"].keys():
        check_guesses(name, guesses[name], first)
        yield name, schema.outputs[name].metric_inputs(guesses[name], batch["targets"][name])


def check_guesses(output: str, guesses: Raw, first: int = 0, what: str = "record") -> None:
    """Raise a ValueError naming the first sample (a `what`) of a batch whose prediction is not finite."""
    bad = not_finite(guesses).nonzero()
    if len(bad):
        raise ValueError(f"{output}: what is predicted of {what} {first + int(bad[0]) + 1} is not finite")


def not_finite(raw: Raw) -> Bool[Tensor, " b"]:
    """Return which samples of a raw batch hold NaN or an infinite number."""
    leaves = list(raw.values()) if isinstance(raw, Mapping) else [raw]
    bad = [not_finite(leaf) if isinstance(leaf, Mapping) else ~leaf.isfinite() for leaf in leaves]
    return torch.stack([flags.flatten(1).any(dim=1) if flags.ndim > 1 else flags for flags in bad]).any(dim=0)


def guess_scores(schema: Schema, batches: Iterable[Batch], guess: Callable[[Batch], Mapping[str, Raw]]) -> Scores:
    """Scores of what a baseline guesses of these batches, of the outputs that it knows."""
    return scored(schema.outputs, (pair for batch in batches for pair in metric_inputs(schema, batch, guess(batch))))


def scored(outputs: Mapping[str, Modality], pairs: Iterable[tuple[str, Compared]]) -> Scores:
    """The metrics of outputs over all pairs of each; an output of which nothing is known has none."""
    metrics: dict[str, Mapping[str, Metric]] = {}
    for name, pair in pairs:
        if not len(pair[1]):
            continue
        if name not in metrics:
            metrics[name] = {key: metric.to(pair[0].device) for key, metric in outputs[name].metrics().items()}
        for metric in metrics[name].values():
            metric.update(*pair)
    return {name: {key: float(metric.compute()) for key, metric in own.items()} for name, own in metrics.items()}


def gathered(pairs: Iterable[tuple[str, Compared]]) -> dict[str, Compared]:
    """All pairs of each output as one, tensors of all records on the CPU."""
    found: dict[str, list[Compared]] = defaultdict(list)
    for name, pair in pairs:
        found[name].append(pair)
    return {name: tuple(torch.cat(side).cpu() for side in zip(*own, strict=True)) for name, own in found.items()}


@contextmanager
def evaluating(learner: nn.Module) -> Iterator[None]:
    """Put a training module into evaluation mode, without gradients; afterwards its weights are sharded again.

    Only a backward pass would do that: until then parameters are whole tensors, and no state can be saved of them.
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
    """The training loss over all records, as if they were one batch; in sharded training every process computes it.

    ValueError if no record has a target: a loss of 0 would be the best.
    """
    schema = learner.schema
    sums = torch.zeros(len(schema.outputs), dtype=torch.double)
    counted = torch.zeros_like(sums)
    with evaluating(learner):
        masking = masking_of(learner.model, schema)
        for number, batch in enumerate(evaluation_batches(schema, records, batch_size)):
            losses = learner(on_device(batch, device_of(learner)), masking._replace(first=number * batch_size))
            count = counts(schema, batch, torch.device("cpu"))
            counted += count
            for number, name in enumerate(schema.outputs):
                sums[number] += count[number] * losses[name].item() if name in losses else 0.0
    if not counted.any():
        raise ValueError(f"none of the {len(records)} validation records has a target: change validation_fraction")
    return float((sums / counted.clamp(min=1)).sum())


def batch_loss(learner: Any, batch: Batch) -> float:
    """The loss of a training batch without dropout and the like."""
    with evaluating(learner):
        losses = learner(batch, masking_of(learner.model, learner.schema))
        return float(sum(own.item() for own in losses.values()))
