"""What a published model is, and what the configurations of most of them have in common."""

from collections.abc import Callable
from dataclasses import dataclass

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.schema.preset import Preset


@dataclass(frozen=True)
class Published:
    """A published model."""

    preset: Callable[[], Preset]
    """Makes its schema and sizes."""
    parameters: int | None
    """Exact count, measured on the official code or on the released weights; None: only what the paper rounds to."""
    paper_parameters: str
    """The paper's count."""
    paper_flops: str
    """The paper's count of one forward pass."""
    released: bool = False
    """Whether DeepMind released its weights."""


def published(
    latents: tuple[int, int], layers: int, blocks: int = 1, heads: int = 8, decoder: DecoderConfig | None = None
) -> Config:
    """Return the config of most published models: [N, D] latents, one head to read and to write, widths by padding."""
    return Config(
        latents=LatentsConfig(*latents),
        encoder=EncoderConfig(channel_alignment="pad"),
        processor=ProcessorConfig(num_layers=layers, num_blocks=blocks, num_heads=heads),
        decoder=decoder or DecoderConfig(channel_alignment="pad"),
    )
