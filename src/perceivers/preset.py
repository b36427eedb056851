"""A preset: the schema and the sizes of a model, before there are weights."""

from dataclasses import dataclass

import torch

from perceivers.core.perceiver import Config, PerceiverIO
from perceivers.schema import Schema


@dataclass(frozen=True)
class Preset:
    """All that a model needs to be built."""

    schema: Schema
    """What goes in and what comes out."""
    config: Config
    """Sizes."""

    def build(self, device: str = "cpu") -> PerceiverIO:
        """The model, newly initialised; device "meta" makes shapes alone, in no time and no memory."""
        with torch.device(device):
            return PerceiverIO(self.schema, self.config)
