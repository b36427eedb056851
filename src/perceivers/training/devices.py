"""Devices: those of this machine, the choice of one, and moving batches to it."""

from typing import Any

import torch
from torch import nn

INFERENCE = ("cuda",)
"""Device types that inference uses by default, the fastest first; otherwise the CPU."""

TRAINING = ("cuda", "mps")
"""Device types that training uses by default, the fastest first; otherwise the CPU."""


def best_device(kinds: tuple[str, ...] = INFERENCE) -> str:
    """Return the first of these device types that this machine has; "cpu" if it has none."""
    here = available_devices()
    return next((kind for kind in kinds if here[kind]), "cpu")


def available_devices() -> dict[str, bool]:
    """Return for each device type True if this machine has one."""
    return {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's parameters."""
    return next(module.parameters()).device


def on_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch to a device."""
    from lightning.fabric.utilities import move_data_to_device  # an extra, and slow to import

    return move_data_to_device(batch, device)
