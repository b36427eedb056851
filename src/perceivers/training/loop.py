"""One training loop for any schema. A resumed run makes the same steps as one that was never stopped."""

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from perceivers.core.perceiver import PerceiverIO
from perceivers.schema import Record, Schema
from perceivers.storage import write_text
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig, build_optimiser, learning_rate
from perceivers.training.order import BatchOrder, training_batches
from perceivers.training.progress import progress_bar
from perceivers.training.state import TrainingState, latest_checkpoint

LOG = "log.jsonl"


@dataclass(frozen=True)
class TrainingConfig:
    """How a schema's model is trained."""

    num_steps: int = 1000
    """Steps in all."""
    batch_size: int = 64
    """Records of a step, over all processes together."""
    seed: int = 0
    """Of initial weights, order, augmentation and dropout."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """Update rule."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the steps."""
    log_every: int = 20
    """Steps between two lines of the log."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; the last step always makes one."""
    num_workers: int = 0
    """Processes that prepare records; 0: the training process itself."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device."""
    devices: int = 1
    """Number of devices."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"] = "32-true"
    """Numbers of the forward and backward pass."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "log_every", "checkpoint_every", "devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.batch_size % self.devices:
            raise ValueError(f"batch_size = {self.batch_size} must be a multiple of devices = {self.devices}")
        learning_rate(0, self.num_steps, self.optimiser, self.schedule)  # says now what would be wrong later


def train(model: PerceiverIO, records: Sequence[Record], config: TrainingConfig, run: Path) -> None:
    """Train a model, in place, up to `num_steps`, from the run folder's latest checkpoint if it has one."""
    from lightning.fabric import Fabric  # an extra, and slow to import

    if not records:
        raise ValueError("no records to learn from")
    schema = cast(Schema, model.schema)
    fabric = Fabric(accelerator=config.accelerator, devices=config.devices, precision=config.precision)
    fabric.launch()
    state = TrainingState(model, build_optimiser(model, config.optimiser))
    wrapped, optimiser = fabric.setup(model, state.optimiser)
    if (checkpoint := latest_checkpoint(run)) is not None:
        state.load(checkpoint)

    share = (fabric.global_rank, fabric.world_size)
    order = BatchOrder(config.seed, len(records), config.batch_size, state.step, config.num_steps, *share)
    batches = training_batches(schema, records, order, config.num_workers)
    wrapped.train()
    with Log(run, state.step, config, enabled=fabric.is_global_zero) as log:
        for batch in fabric.setup_dataloaders(batches, use_distributed_sampler=False):
            rate = learning_rate(state.step, config.num_steps, config.optimiser, config.schedule)
            for group in optimiser.param_groups:
                group["lr"] = rate
            seed_step(config.seed, state.step, fabric.global_rank)
            losses = schema.losses(wrapped(batch["inputs"], schema.points(batch["targets"])), batch["targets"])
            total = sum_losses(losses, state.step)
            fabric.backward(total)
            if config.optimiser.max_norm is not None:
                fabric.clip_gradients(wrapped, optimiser, max_norm=config.optimiser.max_norm)
            optimiser.step()
            optimiser.zero_grad()
            state.step += 1
            log.write(state.step, rate, losses)
            last = state.step == config.num_steps
            if fabric.is_global_zero and (last or state.step % config.checkpoint_every == 0):
                state.save(run)
    model.eval()


def sum_losses(losses: Mapping[str, Tensor], step: int) -> Tensor:
    """The training loss; ValueError if it is not finite, before it can spoil a weight."""
    if not losses:
        raise ValueError(f"step {step}: no record of the batch has a target")
    total = torch.stack(list(losses.values())).sum()
    if not math.isfinite(float(total.detach())):
        found = ", ".join(f"{name} {float(loss.detach()):g}" for name, loss in losses.items())
        raise ValueError(f"step {step}: the loss is not finite ({found}): lower the learning rate or check the data")
    return total


def seed_step(*parts: int) -> None:
    """Seed torch by (seed, step, rank): dropout and masks depend on these alone."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Log:
    """Losses of a run as lines of JSON and as a progress bar."""

    def __init__(self, run: Path, step: int, config: TrainingConfig, enabled: bool) -> None:
        self.path, self.every, self.enabled = run / LOG, config.log_every, enabled
        self.progress = progress_bar(disable=not enabled)
        self.task = self.progress.add_task("training", total=config.num_steps, completed=step, note="")
        self.started = time.monotonic()
        if enabled:
            earlier = [line for line in read_log(run) if line["step"] <= step]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in earlier))

    def __enter__(self) -> "Log":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def write(self, step: int, rate: float, losses: Mapping[str, Tensor]) -> None:
        """A line every `log_every` steps."""
        self.progress.update(self.task, completed=step)
        if not self.enabled or step % self.every:
            return
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        line = {"step": step, "rate": rate, "losses": values, "seconds": round(time.monotonic() - self.started, 3)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.progress.update(self.task, note="  ".join(f"{name} {value:.4f}" for name, value in values.items()))


def read_log(run: Path) -> list[dict[str, Any]]:
    """Lines of a run's log; a last line that was cut off is left out."""
    lines = []
    for line in (run / LOG).read_text(encoding="utf-8").splitlines() if (run / LOG).exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
