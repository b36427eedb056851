"""A preset: the schema and the sizes of a published model."""

from dataclasses import dataclass

import torch

from perceivers.core.perceiver import Config, DecoderConfig, EncoderConfig, LatentsConfig, PerceiverIO, ProcessorConfig
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
