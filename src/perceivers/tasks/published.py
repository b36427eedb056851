"""What most published models have in common."""

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig


def published(
    latents: tuple[int, int], layers: int, blocks: int = 1, heads: int = 8, decoder: DecoderConfig | None = None
) -> Config:
    """What most published models have in common: [N, D] latents, one head to read and to write, widths by padding."""
    return Config(
        latents=LatentsConfig(*latents),
        encoder=EncoderConfig(join="pad"),
        processor=ProcessorConfig(num_layers=layers, num_blocks=blocks, num_heads=heads),
        decoder=decoder or DecoderConfig(join="pad"),
    )
