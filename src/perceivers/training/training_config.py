"""Settings of training."""

from dataclasses import dataclass, field
from typing import Literal

from perceivers.core.checks import COUNT, SIZE, check_ranges
from perceivers.core.memory_limits import check_given_limit
from perceivers.training.mixup import Mixup
from perceivers.training.optimisers import OptimiserConfig, ScheduleConfig, learning_rate

MOST = {"num_steps": 10**12, "batch_size": 10**6, "accumulate": 10**6, "devices": 1024, "num_workers": 1024}
MOST |= {"unroll": 10**5}
"""Upper bounds of settings: larger runs would never end, or start more processes than a machine can bear."""


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run."""

    num_steps: int = 1000
    """Number of training steps."""
    batch_size: int = 64
    """Number of records (with `unroll`, of examples) per step, over all processes together."""
    accumulate: int = 1
    """Gradient accumulation: number of parts of a process's share of a batch; less memory, the same gradient."""
    unroll: int = 1
    """With a stream: consecutive records that make an example (truncated backpropagation through time)."""
    shuffle: bool = True
    """Shuffle the records anew in each epoch; otherwise take them in the order of the data, as for a curriculum."""
    seed: int = 0
    """Seed of the initial weights, shuffling, augmentation, masking and dropout."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """The optimiser."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Schedule of the learning rate."""
    mixup: Mixup | None = None
    """MixUp and CutMix of the images of a batch and of their classes; None: neither."""
    weights: Literal["fixed", "learned"] = "fixed"
    """Weights of the losses: those of the schema ("fixed"), or also divided by a learned variance per output."""
    average_decay: float | None = None
    """Decay of an exponential moving average (EMA) of the weights, used for evaluation; None: no average."""
    validation_fraction: float = 0.0
    """Fraction of the training records that is held out to choose the best checkpoint."""
    log_every: int = 20
    """Steps between two lines of the log."""
    tensorboard: bool = False
    """Write scalars and sample plots for TensorBoard into the run folder too."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; the last step always saves one."""
    num_workers: int = 0
    """Worker processes that preprocess records, per training process; 0: the training process does it."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Type of device; "auto": the best that this machine has."""
    devices: int = 1
    """Number of training processes, one per device; torchrun and SLURM override it."""
    shard_model: bool = False
    """Shard weights, gradients and moments over the processes (fully_shard) instead of copying them to each (DDP)."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"] = "32-true"
    """Precision of the forward and backward pass."""
    activation_checkpointing: bool = False
    """Run attention blocks again in the backward pass instead of storing their activations, to save memory."""
    memory_limit: int | str | None = None
    """Bytes, or text such as "200MB", that a cross-attention may take on top of inputs, outputs and weights."""
    compile: bool = False
    """Compile with torch.compile: a slower start, then faster steps."""

    def __post_init__(self) -> None:
        sizes = ("num_steps", "batch_size", "unroll", "accumulate", "log_every", "checkpoint_every", "devices")
        check_ranges(self, {**dict.fromkeys(sizes, SIZE), "seed": COUNT, "num_workers": COUNT})
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name} = {getattr(self, name)} must be at most {most}")
        check_given_limit(self.memory_limit)
        if self.mixup is not None and self.unroll > 1:
            raise ValueError("mixup mixes records, not streams: leave mixup or unroll out")
        if self.weights == "learned" and self.optimiser.kind == "lamb":
            raise ValueError("weights = learned needs the optimiser adamw or muon: lamb hardly moves what begins at 0")
        self.check_processes(self.devices)
        if self.average_decay is not None and not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay = {self.average_decay} must be in [0, 1), or None")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction = {self.validation_fraction} must be in [0, 1)")
        self.rate(0)  # raises now for a schedule that would fail later

    def check_processes(self, number: int) -> None:
        """Raise a ValueError unless a batch can be split over this number of processes and their accumulation parts."""
        if self.batch_size % (number * self.accumulate):
            text = f"{number} processes x accumulate = {self.accumulate}"
            raise ValueError(f"batch_size = {self.batch_size} must be a multiple of {text}")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step (from 0)."""
        base = self.optimiser.base_batch_size or self.batch_size
        return learning_rate(step, self.num_steps, self.optimiser, self.schedule) * self.batch_size / base
