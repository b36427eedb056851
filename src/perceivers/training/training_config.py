"""Settings of training."""

from dataclasses import dataclass, field
from typing import Literal

from perceivers.core.checks import COUNT, SIZE, check_ranges
from perceivers.training.mixup import Mixup
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig, learning_rate

MOST = {"num_steps": 10**12, "batch_size": 10**6, "accumulate": 10**6, "devices": 1024, "num_workers": 1024}
"""Upper bounds of settings: larger numbers never end, or start more processes than a machine bears."""


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of training a schema's model."""

    num_steps: int = 1000
    """Steps in all."""
    batch_size: int = 64
    """Records of a step, over all processes together."""
    accumulate: int = 1
    """Parts of a process's share of a batch, one after another: less memory, the same gradient."""
    shuffle: bool = True
    """Each epoch takes the records in an order of its own; without it as they come, as a curriculum wants."""
    seed: int = 0
    """Seed of initial weights, order, augmentation and dropout."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """Update rule."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the steps."""
    mixup: Mixup | None = None
    """Pictures of a batch are mixed with one another, and so are their classes; None: they are not."""
    weights: Literal["fixed", "learned"] = "fixed"
    """Weights of the losses: the schema's, or also divided by a learned variance of each output (Kendall 2018)."""
    average_decay: float | None = None
    """Decay of an exponential moving average of the weights (EMA), used by evaluation; None: there is no average."""
    validation_fraction: float = 0.0
    """Part of the training records that is not learned from but chooses the best checkpoint."""
    log_every: int = 20
    """Steps between two lines of the log."""
    tensorboard: bool = False
    """Whether scalars and pictures are also written for TensorBoard into the run's folder."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; the last step always makes one."""
    num_workers: int = 0
    """Processes that prepare records, of each training process; 0: the training process itself."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device."""
    devices: int = 1
    """Training processes, one a device; under torchrun or SLURM as many as were started."""
    shard_model: bool = False
    """Weights, gradients and moments are spread over the processes (fully_shard), not copied to each (DDP)."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"] = "32-true"
    """Numbers of the forward and backward pass."""
    activation_checkpointing: bool = False
    """Activation checkpointing: self-attention layers run again in the backward pass, to save memory."""
    memory_limit: int | None = None
    """Megabytes that each reading and writing may take beside inputs, outputs and weights; None: what is fastest."""
    compile: bool = False
    """Use torch.compile: slower to start, then faster."""

    def __post_init__(self) -> None:
        sizes = ("num_steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "devices")
        check_ranges(self, {**dict.fromkeys(sizes, SIZE), "seed": COUNT, "num_workers": COUNT})
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name} = {getattr(self, name)} must be at most {most}")
        if self.memory_limit is not None and self.memory_limit < 1:
            raise ValueError(f"memory_limit = {self.memory_limit} must be at least 1 megabyte, or None")
        if self.weights == "learned" and self.optimiser.kind == "lamb":
            raise ValueError("weights = learned needs the optimiser adamw or muon: lamb hardly moves what begins at 0")
        self.check_processes(self.devices)
        if self.average_decay is not None and not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay = {self.average_decay} must be in [0, 1), or None")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction = {self.validation_fraction} must be in [0, 1)")
        self.rate(0)  # says now what would be wrong later

    def check_processes(self, number: int) -> None:
        """Raise a ValueError unless a batch can be shared out to so many processes."""
        if self.batch_size % (number * self.accumulate):
            text = f"{number} processes x accumulate = {self.accumulate}"
            raise ValueError(f"batch_size = {self.batch_size} must be a multiple of {text}")

    def rate(self, step: int) -> float:
        """Learning rate of a step (from 0)."""
        base = self.optimiser.base_batch_size or self.batch_size
        return learning_rate(step, self.num_steps, self.optimiser, self.schedule) * self.batch_size / base
