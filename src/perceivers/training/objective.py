"""The losses of a batch, and what each part of it counts."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from perceivers.core.perceiver import PerceiverIO
from perceivers.schema import Schema

Batch = Mapping[str, Mapping[str, Any]]
"""Inputs and targets by name, each [B, ...] or a dictionary of such."""


class Objective(nn.Module):
    """A model and the losses of its schema as one module, so that whatever wraps it sees the whole of a step."""

    def __init__(self, model: PerceiverIO) -> None:
        super().__init__()
        self.model = model

    @property
    def schema(self) -> Schema:
        """What goes in and what must come out."""
        return cast(Schema, self.model.schema)

    def train(self, mode: bool = True) -> "Objective":
        """Training mode, or evaluation mode; frozen batch norms keep their statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _NormBase) and not any(p.requires_grad for p in module.parameters()):
                module.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted loss of each output, in float32 at least; a batch without targets has one that is 0."""
        predictions, targets = self.predict(batch), batch["targets"]
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            losses = self.schema.losses(predictions, targets)
        if not losses:  # other processes may have targets: this one's gradient is 0
            nothing = 0.0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()
            return {next(iter(self.schema.outputs)): nothing}
        return losses

    def predict(self, batch: Batch) -> dict[str, Any]:
        """What the model writes where the batch has targets."""
        return _precise(self.model(batch["inputs"], self.schema.points(batch["targets"])))


def counts(schema: Schema, batch: Batch, device: torch.device) -> Tensor:
    """How many elements the loss of each output is a mean over, 0 for one without a target."""
    found = {name: schema.outputs[name].num_terms(target) for name, target in batch["targets"].items()}
    return torch.stack(
        [found[name].to(device) if name in found else torch.tensor(0, device=device) for name in schema.outputs]
    )


def parts(batch: Batch, number: int) -> Sequence[Batch]:
    """A batch cut into so many parts of equal size."""
    return [_rows(batch, part, number) for part in range(number)]


def _rows(value: Any, part: int, number: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _rows(item, part, number) for key, item in value.items()}
    return value.tensor_split(number)[part]


def _precise(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _precise(item) for key, item in value.items()}
    if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        return value.float()
    return value
