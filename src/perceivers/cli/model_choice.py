"""The choice of a model, and of the device and precision that it runs with."""

import sys
from dataclasses import dataclass
from typing import Literal

import torch

from perceivers.core.arguments import check_names
from perceivers.core.layers import truncated_normal_
from perceivers.core.memory_limits import check_given_limit
from perceivers.core.perceiver import PerceiverIO
from perceivers.runs.run import find_model
from perceivers.systems import PRESETS
from perceivers.training.devices import best_device
from perceivers.training.loop import seed_step


@dataclass(frozen=True)
class ModelChoice:
    """Weights and device."""

    model: str | None = None
    """Folder of a model or a run, or hub repository owner/name; with --random-weights: name of a published model."""
    random_weights: int | None = None
    """Seed of random weights, to test whether everything runs, and how fast; the results mean nothing."""
    offline: bool = False
    """Use only files that have been downloaded before."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to run on."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Precision of the computation."""
    memory_limit: str | None = None
    """Memory that reading or writing may take on top of model, inputs and outputs, e.g. 200MB; by default no limit."""

    def __post_init__(self) -> None:
        check_given_limit(self.memory_limit)

    def load(self, published: str) -> PerceiverIO:
        """Return the model, ready to use; by default, random weights are drawn for the `published` model."""
        model = self._model(published).eval().requires_grad_(False)
        model.memory_limit = self.memory_limit
        device = best_device() if self.device == "auto" else self.device
        try:
            return model.to(device, getattr(torch, self.dtype))
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ValueError(f"device {device} cannot be used here: {str(error).splitlines()[0]}") from None

    def _model(self, published: str) -> PerceiverIO:
        if self.random_weights is not None:
            name = check_names("model", [self.model or published], PRESETS)[0]
            print(f"random weights (seed {self.random_weights}): the result means nothing", file=sys.stderr)
            seed_step(self.random_weights)
            model = PRESETS[name].preset().build()
            for parameter in model.parameters():
                if parameter.ndim > 1 and not parameter.any():  # a head that starts at 0 would give constant outputs
                    truncated_normal_(parameter, parameter.shape[-1] ** -0.5)
            return model
        if self.model is None:
            raise ValueError(f"give --model FOLDER, or --random-weights SEED to try {published} without weights")
        return find_model(self.model, self.offline)
