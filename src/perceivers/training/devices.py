"""Devices: which this machine has, which one is chosen, and how batches get there."""

from typing import Any

import torch
from torch import nn

INFERENCE = ("cuda",)
"""Kinds of device that a model runs on unless told otherwise, the fastest first; others run on the CPU."""

TRAINING = ("cuda", "mps")
"""The same for training."""


def best_device(kinds: tuple[str, ...] = INFERENCE) -> str:
    """Return the first of these kinds of device that this machine has; "cpu" if it has none."""
    here = available_devices()
    return next((kind for kind in kinds if here[kind]), "cpu")


def available_devices() -> dict[str, bool]:
    """Return each kind of device, and whether this machine has one."""
    return {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}


def device_of(module: nn.Module) -> torch.device:
    """Return where the parameters of a module are."""
    return next(module.parameters()).device


def on_device(batch: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on this device."""
    from lightning.fabric.utilities import move_data_to_device  # an extra, and slow to import

    return move_data_to_device(batch, device)
