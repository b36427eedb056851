"""The description of a published model, and the configuration that most of them share."""

from collections.abc import Callable
from dataclasses import dataclass

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.schema.preset import Preset


@dataclass(frozen=True)
class Published:
    """A published model."""

    preset: Callable[[], Preset]
    """Function that returns its schema and sizes."""
    parameters: int | None
    """Exact number, from the official code or the released weights; None: only the paper's rounded number is known."""
    paper_parameters: str
    """The paper's number of parameters."""
    paper_flops: str
    """The paper's number of operations of one forward pass."""
    released: bool = False
    """True if DeepMind released its weights."""


def published(
    latents: tuple[int, int], layers: int, blocks: int = 1, heads: int = 8, decoder: DecoderConfig | None = None
) -> Config:
    """Return the config of most published models: [N, D] latents, one-head cross-attentions, alignment by padding."""
    return Config(
        latents=LatentsConfig(*latents),
        encoder=EncoderConfig(channel_alignment="pad"),
        processor=ProcessorConfig(num_layers=layers, num_blocks=blocks, num_heads=heads),
        decoder=decoder or DecoderConfig(channel_alignment="pad"),
    )
