"""What reading leaves behind."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from perceivers.core.tokens import Segment


@dataclass(frozen=True)
class Encoded:
    """Inputs, read and processed: ask it as often as you like."""

    latents: Float[Tensor, "b n d"]
    """The latents after processing."""
    sources: Mapping[str, Segment] = field(default_factory=dict)
    """Tokens of the inputs that an output asks from (optical flow asks with its own input), in their own width."""
