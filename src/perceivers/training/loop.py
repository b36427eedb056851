"""The training loop, one for every schema. A resumed run makes the same steps as one that was never stopped."""

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from perceivers.core.perceiver import PerceiverIO
from perceivers.data.dataset import chosen
from perceivers.data.splits import random_split
from perceivers.schema import Batch, Record, Schema
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
from perceivers.training.streams import Unrolled, last_of_each, stream_names
from perceivers.training.training_config import TrainingConfig
from perceivers.training.training_state import TrainingState

if TYPE_CHECKING:
    from lightning.fabric import Fabric

SMALLEST_SCALE = 2.0**-24
"""Smallest loss scale under 16-mixed at which a step may still be skipped."""


def train(
    model: PerceiverIO,
    records: Sequence[Record],
    config: TrainingConfig,
    run: Path,
    claim: Callable[[int], None] = lambda step: None,
) -> bool:
    """Train a model in place up to `num_steps`, from the latest checkpoint of the run folder if there is one.

    The first process calls `claim` with the number of steps made, once the run folder is locked and everything is
    built, but before anything is written. A ValueError from `claim` ends the run in all processes.
    Return True in the first process, which alone continues after training. Raise Stopped after a signal, once a
    checkpoint is saved.
    """
    streams = stream_names(records, cast(Schema, model.schema))
    if streams and not model.config.processor.final_norm:
        warnings.warn("a stream without processor.final_norm: true: the latents that it carries may grow", stacklevel=2)
    records, validation = split(records, config, streams)
    model.memory_limit = config.memory_limit
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
    """Make the training steps of one process; at the end the model has the averaged weights, if the run keeps any.

    This is a separate function, so that no reference to the model outlives the process group (`launched`).
    """
    # Build the learner (`objective`, wrapped by Fabric), the optimiser and the state that checkpoints save.
    objective = Objective(model, config.weights, config.unroll)
    learner = build_learner(fabric, objective, config)
    optimiser = fabric.setup_optimizers(build_optimiser(model, config.optimiser, objective.extra_parameters.values()))
    state = TrainingState.start(objective, optimiser.optimizer, fabric, config.average_decay)

    # Resume: the first process finds the latest checkpoint, all load it, then the first may refuse to continue.
    latest = agreed(fabric, lambda: latest_checkpoint(run))
    if latest is not None:
        state.load(latest)
    agreed(fabric, lambda: claim(state.step))

    batches = remaining_batches(fabric, objective, records, state.step, config)
    with Log(run, state.step, config, enabled=fabric.is_global_zero) as log, workers_let_go():
        started = time.monotonic() - state.seconds
        for batch in fabric.setup_dataloaders(batches, use_distributed_sampler=False):
            # Gradients. The random numbers of a step depend on (seed, step, rank) alone: a resumed run repeats them.
            rate = set_rate(optimiser, config.rate(state.step))
            seed_step(config.seed, state.step, fabric.global_rank)
            if config.mixup is not None:
                batch = mixed(objective.schema, batch, config.mixup)
            losses = gradients(fabric, learner, batch, config.accumulate, objective.warmup(state.step))
            weights = objective.weights()
            norm = clip(fabric, learner, optimiser, config)
            check_finite(state.step, losses, weights, norm, state.checkpoint)

            # Update of the weights and of their averages.
            optimiser.step()
            optimiser.zero_grad()
            state.step += 1
            state.update_average()
            state.seconds = time.monotonic() - started
            scalars = {"rate": rate, "norm": norm, "seconds": round(state.seconds, 3)}
            log.write(state.step, objective.unweighed(losses, weights), weights, **scalars)

            # Checkpoint: at regular steps, with a validation loss; after a signal to any process, without one.
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


def build_learner(fabric: "Fabric", objective: Objective, config: TrainingConfig) -> Any:
    """Return model and losses as one module in training mode, wrapped by Fabric (DDP, FSDP, precision)."""
    learner = fabric.setup_module(torch.compile(objective) if config.compile else objective)
    learner.mark_forward_method("predict")
    learner.mark_forward_method("carried")
    learner.train()
    return learner


def remaining_batches(
    fabric: "Fabric", objective: Objective, records: Sequence[Record], step: int, config: TrainingConfig
) -> DataLoader[Any]:
    """Return a loader of this process's share of each batch, from `step` to the last step."""
    names, groups = stream_names(records, objective.schema), getattr(records, "groups", ())
    if names and groups:
        raise ValueError(f"stream: {objective.schema.stream}: shards are read in another order: give a table or arrays")
    examples = Unrolled.of(names, config.unroll) if names else None
    sampler = BatchOrder(
        seed=config.seed,
        num_records=len(records if examples is None else examples),
        batch_size=config.batch_size,
        first=step,
        last=config.num_steps,
        rank=fabric.global_rank,
        world=fabric.world_size,
        shuffle=config.shuffle,
        groups=groups,
        examples=examples,
    )
    return training_batches(objective.schema, records, sampler, config.num_workers, objective.noise_shape)


def set_rate(optimiser: Any, rate: float) -> float:
    """Set the learning rate of all parameter groups, and return it."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    return rate


def saved(
    state: TrainingState,
    learner: Any,
    batch: Batch,
    validation: Sequence[Record],
    config: TrainingConfig,
    run: Path,
) -> Path:
    """Save a checkpoint, with its validation loss if there are validation records; return its folder."""
    with state.averaged():
        score = validation_loss(learner, validation, config.batch_size) if validation else None
        # Without a validation loss, the loss of a part of the last batch shows whether the new weights are finite.
        loss = batch_loss(learner, parts(batch, config.accumulate)[0]) if score is None else score
    return state.save(run, loss, score)


def split(
    records: Sequence[Record], config: TrainingConfig, streams: Sequence[str] = ()
) -> tuple[Sequence[Record], Sequence[Record]]:
    """Split records into training records and validation records, which choose the best checkpoint.

    The last records of each stream are for validation, if the records belong to `streams`. Raise a ValueError if no
    training records are left.
    """
    parts = last_of_each(streams, config.validation_fraction) if streams else None
    number = round(config.validation_fraction * len(records)) if parts is None else len(parts[1])
    if number == len(records):
        raise ValueError(f"no records to learn from: of {len(records)}, {number} are for validation")
    if not number:
        if config.validation_fraction:
            text = f"validation_fraction = {config.validation_fraction} has no effect: it is less than half a record"
            warnings.warn(f"{text} of {len(records)}", stacklevel=3)
        return records, []
    training, validation = parts or random_split(len(records), number, config.seed)
    return chosen(records, training), chosen(records, validation)


def gradients(
    fabric: "Fabric", learner: Any, batch: Batch, number: int, warmup: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Compute the gradients of a batch over all processes, and return the loss of each output that has a target.

    Each process cuts its share of the batch into `number` parts, one backward pass each, to save memory. A loss is a
    mean over elements (pixels, tokens, ...). Their number differs between parts, may be 0, and weights each part:

        loss of the batch = sum over processes and parts of  (elements of the part / elements of the batch) * its loss

    The result is the loss, and its gradient the gradient, of the whole batch in one piece. `warmup` scales the
    gradients of some losses, by name, and not the losses that are returned.
    """
    # Count the elements of each loss, in each part of this process and in the whole batch: [losses].
    names, pieces, warmup = learner.names, parts(batch, number), warmup or {}
    piece_counts = [counts(learner, piece, fabric.device) for piece in pieces]
    batch_counts = fabric.all_reduce(torch.stack(piece_counts).sum(dim=0), reduce_op="sum")
    if not batch_counts[: len(learner.schema.outputs)].any():
        raise ValueError("no record of the batch has a target")
    in_batch = dict(zip(names, batch_counts.clamp(min=1), strict=True))  # 1: no division by 0

    # Add up losses and gradients over the parts.
    sums: dict[str, Tensor] = {name: torch.zeros((), device=fabric.device) for name in names}
    for piece, count in zip(pieces, piece_counts, strict=True):
        # Processes average their gradients below; the factor world_size makes the average a sum.
        in_piece = dict(zip(names, fabric.world_size * count, strict=True))
        with fabric.no_backward_sync(learner, enabled=piece is not pieces[-1]):
            weighted = {name: loss * in_piece[name] / in_batch[name] for name, loss in learner(piece).items()}
            scaled = [warmup[name] * loss if name in warmup else loss for name, loss in weighted.items()]
            fabric.backward(torch.stack(scaled).sum())
        sums |= {name: sums[name] + loss.detach() for name, loss in weighted.items()}

    # Add up the losses over the processes: their mean is the sum, since each contains the factor world_size.
    losses = fabric.all_reduce(torch.stack(list(sums.values())), reduce_op="mean").tolist()
    return {name: loss for name, loss, has_target in zip(sums, losses, batch_counts, strict=True) if has_target}


def clip(fabric: "Fabric", learner: Any, optimiser: Any, config: TrainingConfig) -> float:
    """Clip the gradient to the optimiser's `max_norm`; return its norm before, or 0 if 16-mixed skips the step.

    16-mixed skips a step whose gradient overflows and halves the loss scale. Below SMALLEST_SCALE the norm is returned
    as it is: a gradient that no scale makes finite must end the run (`check_finite`), not be skipped for ever.
    """
    max_norm = config.optimiser.max_norm or math.inf
    may_skip = config.precision == "16-mixed" and fabric.strategy.precision.scaler.get_scale() > SMALLEST_SCALE
    clipped = fabric.clip_gradients(learner, optimiser, max_norm=max_norm, error_if_nonfinite=False)
    assert clipped is not None
    norm = float(clipped.full_tensor() if isinstance(clipped, DTensor) else clipped)
    return 0.0 if may_skip and not math.isfinite(norm) else norm


def check_finite(
    step: int, losses: Mapping[str, float], weights: Mapping[str, float], norm: float, checkpoint: Path | None
) -> None:
    """Raise a ValueError in all processes for a loss or gradient that is not finite, before it reaches the weights."""
    if vanished := [name for name, weight in weights.items() if weight == 0]:
        raise diverged(step, f"the learned weight of {vanished[0]} is 0", checkpoint)
    what = "loss" if not all(map(math.isfinite, losses.values())) else "" if math.isfinite(norm) else "gradient"
    if what:
        values = ", ".join(f"{name} {loss:g}" for name, loss in losses.items())
        raise diverged(step, f"the {what} is not finite ({values}, norm {norm:g})", checkpoint)


def show(log: Log, step: int, learner: Any, records: Sequence[Record]) -> None:
    """Plot the predictions of a few records for TensorBoard."""
    shown = records[:SHOWN]
    batch = next(iter(evaluation_batches(learner.schema, shown, SHOWN)))
    with evaluating(learner):
        masking = masking_of(learner.model, learner.schema)
        streams = stream_names(shown, learner.schema)
        predictions = learner.predict(on_device(batch, device_of(learner)), masking, streams)
        predictions = on_device(predictions, torch.device("cpu"))
    log.picture(step, draw_samples(learner.schema, batch, predictions))


def seed_step(*parts: int) -> None:
    """Seed torch with these numbers, such as (seed, step, rank): dropout and masks depend on nothing else."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
