"""One training loop for any schema. A resumed run makes the same steps as one that was never stopped."""

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from perceivers.core.perceiver import PerceiverIO
from perceivers.data.dataset import chosen
from perceivers.data.splits import random_split
from perceivers.schema import Batch, Record
from perceivers.training.activation_checkpointing import recomputed
from perceivers.training.checkpoints import diverged, latest_checkpoint
from perceivers.training.devices import device_of, on_device
from perceivers.training.distributed import agreed, launched, only_user
from perceivers.training.logging import Log
from perceivers.training.losses import Objective, counts, parts
from perceivers.training.metrics import batch_loss, evaluating, masking_of, validation_loss
from perceivers.training.mixup import mixed
from perceivers.training.optimisers import build_optimiser
from perceivers.training.plots import SHOWN, draw_samples
from perceivers.training.sampler import BatchOrder, evaluation_batches, training_batches, workers_let_go
from perceivers.training.signals import StopFlag, Stopped, stop_signals
from perceivers.training.training_config import TrainingConfig
from perceivers.training.training_state import TrainingState

if TYPE_CHECKING:
    from lightning.fabric import Fabric

SMALLEST_SCALE = 2.0**-24
"""Smallest scale of the loss under 16-mixed at which a step may still be skipped."""


def train(
    model: PerceiverIO,
    records: Sequence[Record],
    config: TrainingConfig,
    run: Path,
    claim: Callable[[int], None] = lambda step: None,
) -> bool:
    """Train a model, in place, up to `num_steps`, from the run folder's latest checkpoint if it has one.

    `claim` is called in the first process alone, with the number of steps made, when the folder is locked, everything
    is built and nothing was written there: it may refuse to go on (ValueError, then of all processes).
    True in the first process, which goes on alone. Raises Stopped after a signal and the checkpoint it asks for.
    """
    records, validation = split(records, config)
    model.memory_limit = None if config.memory_limit is None else config.memory_limit * 1_000_000
    with (
        launched(config) as fabric,
        only_user(run, fabric),
        recomputed(model, config.activation_checkpointing),
        stop_signals() as stop,
    ):
        make_steps(fabric, model, records, validation, config, run, stop, claim)
    model.eval()
    return fabric.is_global_zero


def make_steps(
    fabric: "Fabric",
    model: PerceiverIO,
    records: Sequence[Record],
    validation: Sequence[Record],
    config: TrainingConfig,
    run: Path,
    stop: StopFlag,
    claim: Callable[[int], None],
) -> None:
    """Make the steps of one process, from the latest checkpoint on; at the end the weights are their average.

    A function of its own, so that no reference to the model outlives the process group (`launched`).
    """
    objective = Objective(model, config.weights)
    learner = fabric.setup_module(torch.compile(objective) if config.compile else objective)
    learner.mark_forward_method("predict")
    learner.train()
    optimiser = fabric.setup_optimizers(build_optimiser(model, config.optimiser, objective.own.values()))
    state = TrainingState.start(objective, optimiser.optimizer, fabric, config.average_decay)
    if (latest := agreed(fabric, lambda: latest_checkpoint(run))) is not None:
        state.load(latest)
    agreed(fabric, lambda: claim(state.step))

    share = (fabric.global_rank, fabric.world_size)
    steps = (state.step, config.num_steps)
    groups = getattr(records, "groups", ())
    order = BatchOrder(config.seed, len(records), config.batch_size, *steps, *share, config.shuffle, groups)
    batches = training_batches(objective.schema, records, order, config.num_workers)
    with Log(run, state.step, config, enabled=fabric.is_global_zero) as log, workers_let_go():
        started = time.monotonic() - state.seconds
        for batch in fabric.setup_dataloaders(batches, use_distributed_sampler=False):
            rate = config.rate(state.step)
            for group in optimiser.param_groups:
                group["lr"] = rate
            seed_step(config.seed, state.step, fabric.global_rank)
            batch = mixed(objective.schema, batch, config.mixup)
            losses, weights = gradients(fabric, learner, batch, config.accumulate), objective.weights()
            norm = clip(fabric, learner, optimiser, config)
            check_finite(state.step, losses, weights, norm, state.checkpoint)
            optimiser.step()
            optimiser.zero_grad()
            state.step += 1
            state.update_average()
            state.seconds = time.monotonic() - started
            scalars = {"rate": rate, "norm": norm, "seconds": round(state.seconds, 3)}
            log.write(state.step, objective.unweighed(losses, weights), weights, **scalars)

            signal = int(fabric.all_reduce(torch.tensor(stop.number, device=fabric.device), reduce_op="max"))
            due = state.step == config.num_steps or state.step % config.checkpoint_every == 0
            if due or signal:
                checkpoint = saved(state, learner, batch, validation if due else [], config, run)
                if due and config.tensorboard:
                    with state.averaged():
                        show(log, state.step, learner, validation or records)
            if signal:
                raise Stopped(signal, state.step, checkpoint)
    state.set_parameters(state.average)


def saved(
    state: TrainingState,
    learner: Any,
    batch: Batch,
    validation: Sequence[Record],
    config: TrainingConfig,
    run: Path,
) -> Path:
    """Save a checkpoint with its validation loss, or with none if there are no such records."""
    with state.averaged():
        score = validation_loss(learner, validation, config.batch_size) if validation else None
        loss = batch_loss(learner, parts(batch, config.accumulate)[0]) if score is None else score
    return state.save(run, loss, score)


def split(records: Sequence[Record], config: TrainingConfig) -> tuple[Sequence[Record], Sequence[Record]]:
    """Records to learn from, and those that choose the best checkpoint; ValueError if none is left to learn from."""
    number = round(config.validation_fraction * len(records))
    if number == len(records):
        raise ValueError(f"no records to learn from: of {len(records)}, {number} are for validation")
    if not number:
        if config.validation_fraction:
            text = f"validation_fraction = {config.validation_fraction} has no effect: it is less than half a record"
            warnings.warn(f"{text} of {len(records)}", stacklevel=3)
        return records, []
    learned_from, validation = random_split(len(records), number, config.seed)
    return chosen(records, learned_from), chosen(records, validation)


def gradients(fabric: "Fabric", learner: Any, batch: Batch, number: int) -> dict[str, float]:
    """Gradients of a batch over all processes, from so many parts of each share; and the losses of its outputs.

    Each part counts as much as it has elements that its losses are means over: as if the batch were in one piece.
    """
    schema, pieces = learner.schema, parts(batch, number)
    own = [counts(schema, piece, fabric.device) for piece in pieces]
    total = fabric.all_reduce(torch.stack(own).sum(dim=0), reduce_op="sum")
    if not total.any():
        raise ValueError("no record of the batch has a target")
    whole = dict(zip(schema.outputs, total.clamp(min=1), strict=True))
    losses: dict[str, Tensor] = {name: torch.zeros((), device=fabric.device) for name in schema.outputs}
    for piece, count in zip(pieces, own, strict=True):
        part = dict(zip(schema.outputs, fabric.world_size * count, strict=True))  # gradients are means over processes
        with fabric.no_backward_sync(learner, enabled=piece is not pieces[-1]):
            weighted = {name: loss * part[name] / whole[name] for name, loss in learner(piece).items()}
            fabric.backward(torch.stack(list(weighted.values())).sum())
        losses |= {name: losses[name] + loss.detach() for name, loss in weighted.items()}
    means = fabric.all_reduce(torch.stack(list(losses.values())), reduce_op="mean").tolist()
    return {name: loss for name, loss, there in zip(losses, means, total, strict=True) if there}


def clip(fabric: "Fabric", learner: Any, optimiser: Any, config: TrainingConfig) -> float:
    """Clip the gradient to the norm the optimiser allows; its norm before. 0 where 16-mixed skips the step.

    It halves its scale at each such step: a gradient that no scale makes finite is not passed over for ever.
    """
    limit = config.optimiser.max_norm or math.inf
    skips = config.precision == "16-mixed" and fabric.strategy.precision.scaler.get_scale() > SMALLEST_SCALE
    norm = fabric.clip_gradients(learner, optimiser, max_norm=limit, error_if_nonfinite=False)
    assert norm is not None
    found = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return 0.0 if skips and not math.isfinite(found) else found


def check_finite(
    step: int, losses: Mapping[str, float], weights: Mapping[str, float], norm: float, checkpoint: Path | None
) -> None:
    """Raise a ValueError, in all processes, for a loss or gradient that is not finite, before it spoils a weight."""
    if vanished := [name for name, weight in weights.items() if weight == 0]:
        raise diverged(step, f"the learned weight of {vanished[0]} is 0", checkpoint)
    what = "loss" if not all(map(math.isfinite, losses.values())) else "" if math.isfinite(norm) else "gradient"
    if what:
        found = ", ".join(f"{name} {loss:g}" for name, loss in losses.items())
        raise diverged(step, f"the {what} is not finite ({found}, norm {norm:g})", checkpoint)


def show(log: Log, step: int, learner: Any, records: Sequence[Record]) -> None:
    """Draw what the model makes of a few records."""
    batch = next(iter(evaluation_batches(learner.schema, records[:SHOWN], SHOWN)))
    with evaluating(learner):
        found = learner.predict(on_device(batch, device_of(learner)), masking_of(learner.model, learner.schema))
        predictions = on_device(found, torch.device("cpu"))
    log.picture(step, draw_samples(learner.schema, batch, predictions))


def seed_step(*parts: int) -> None:
    """Seed torch by (seed, step, rank): dropout and masks depend on these alone."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
