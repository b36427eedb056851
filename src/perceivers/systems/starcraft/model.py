"""The entity encoder of StarCraft II (paper section B), and a schema to train it on replays alone.

The paper evaluates the encoder inside AlphaStar, by playing; games of that agent are not public.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perceivers.core.attention import Mask
from perceivers.core.blocks import CrossAttention
from perceivers.core.config import Config, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.latents import Latents
from perceivers.core.layers import plain_linear
from perceivers.core.resampler import Resampler
from perceivers.core.trunk import Process
from perceivers.data.published.starcraft_replays import STATISTICS
from perceivers.modalities import Records
from perceivers.modalities.fields import CategoryField, NumberField
from perceivers.schema import Schema

ENTITY_CHANNELS, FEATURE_CHANNELS = 256, 128
"""Channels of an entity at input and output, and of the features that are its query (paper)."""

MASKED_SHARE = 0.15
"""Probability that the type of a unit is masked."""

ENCODER = Config(
    latents=LatentsConfig(num_latents=32, channels=512),
    encoder=EncoderConfig(),
    processor=ProcessorConfig(num_heads=8, num_layers=3),
)
"""32 latents, 3 layers, heads as for ImageNet (paper). The paper does not state the latent width: 512 is ours."""

TRANSFORMER = ProcessorConfig(num_heads=2, num_layers=3, widening_factor=4)
"""The three layers of AlphaStar, which the encoder replaces."""


class PerceiverEntities(nn.Module):
    """Perceiver IO over entities: it encodes them into latents, and decodes with their features as queries."""

    def __init__(self, config: Config = ENCODER) -> None:
        super().__init__()
        self.features = plain_linear(ENTITY_CHANNELS, FEATURE_CHANNELS)
        self.resampler = Resampler(config, ENTITY_CHANNELS)
        self.decoder = CrossAttention(FEATURE_CHANNELS, config.latents.channels, config.decoder, query_residual=True)
        self.channels = FEATURE_CHANNELS

    def forward(self, entities: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"]) -> Float[Tensor, "b m f"]:
        """Return a vector for each entity; `mask` is False in empty slots."""
        latents = self.resampler(entities, mask)
        return self.decoder(self.features(entities), latents, Mask(queries=mask))


class TransformerEntities(nn.Module):
    """The trunk of AlphaStar: self-attention over entities, three layers, two heads of 128 channels, MLP of 1,024."""

    def __init__(self, config: ProcessorConfig = TRANSFORMER) -> None:
        super().__init__()
        self.layers = Process(Config(LatentsConfig(channels=ENTITY_CHANNELS), processor=config))
        self.channels = ENTITY_CHANNELS

    def forward(self, entities: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"]) -> Float[Tensor, "b m c"]:
        """Return a vector for each slot."""
        found: Latents = self.layers(Latents(entities, mask=mask))
        return found.array


class EntityEncoder(nn.Module):
    """Encoder of entities: a vector for each entity and one for all, with either trunk. Empty slots have no effect."""

    def __init__(self, trunk: PerceiverEntities | TransformerEntities) -> None:
        super().__init__()
        self.trunk = trunk
        self.each = plain_linear(trunk.channels, ENTITY_CHANNELS)  # a convolution over slots of width 1
        self.all = plain_linear(trunk.channels, ENTITY_CHANNELS)

    def forward(
        self, entities: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b m c"], Float[Tensor, "b c"]]:
        """Return a vector for each entity, 0 in empty slots, and one vector for all entities."""
        out = self.trunk(entities, mask)
        valid = mask[..., None]
        mean = torch.where(valid, out, 0).sum(dim=1) / valid.sum(dim=1).clamp(min=1)
        return torch.where(valid, self.each(out.relu()), 0), self.all(mean).relu()


def schema() -> Schema:
    """Return a schema with units as input; masked unit types and the statistics of both players as outputs."""
    units = Records(
        fields={
            "type": CategoryField(channels=32),
            "owner": CategoryField(classes=3, channels=8),
            **{name: NumberField() for name in ("x", "y", "age")},
        },
        max_records=512,
        field_mask_prob={"type": MASKED_SHARE},
        field_mask_at_eval=True,
    )
    hidden = Records(key="units", fields={"type": CategoryField()}, of="units", masked_only=True)
    statistics = Records(
        fields={f"{name}_{pid}": NumberField() for pid in (1, 2) for name in STATISTICS}, query_channels=128
    )
    return Schema(inputs={"units": units}, outputs={"hidden": hidden, "statistics": statistics})
