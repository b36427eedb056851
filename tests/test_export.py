"""The released models compile without a break and export with any batch; encode and decode are separate programs."""

from typing import Any

from torch import Tensor, nn

from perceivers.core.interfaces import Indices
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.reading import Encoded

TOLERANCE = 1e-5

Arrays = dict[str, Any]


class Encode(nn.Module):
    """Raw inputs to latents; and to the tokens that an output asks with."""

    def __init__(self, model: PerceiverIO) -> None:
        super().__init__()
        self.model = model

    def forward(self, raw: Arrays) -> Encoded:
        return self.model.encode(raw)


class Decode(nn.Module):
    """Latents to raw outputs, at some places of those that can be asked so."""

    def __init__(self, model: PerceiverIO) -> None:
        super().__init__()
        self.model = model

    def forward(self, encoded: Encoded, places: dict[str, Tensor]) -> Arrays:
        return self.model.decode(encoded, {name: Indices(index) for name, index in places.items()})
