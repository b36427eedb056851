"""The entity encoder of StarCraft II (paper section B), and the schema of what it can learn from replays alone.

The paper puts the encoder into AlphaStar and plays; games of that agent are not public.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perceivers.core.attention import CrossAttention, Mask
from perceivers.core.config import Config, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.layers import plain_linear
from perceivers.core.resampler import Resampler
from perceivers.core.trunk import Process
from perceivers.data.published.starcraft_replays import STATISTICS
from perceivers.modalities import Records
from perceivers.modalities.fields import CategoryField, NumberField
from perceivers.schema import Schema

ENTITY_CHANNELS, FEATURE_CHANNELS = 256, 128
"""Widths of an entity as it comes in and goes out, and of its features, with which it is asked for (paper)."""

HIDDEN = 0.15
"""Part of the units whose types are hidden."""

ENCODER = Config(
    latents=LatentsConfig(num_latents=32, channels=512),
    encoder=EncoderConfig(),
    processor=ProcessorConfig(num_heads=8, num_layers=3),
)
"""32 latents, 3 layers, heads as for ImageNet (paper); the latents' width is not stated: 512 is ours."""

TRANSFORMER = ProcessorConfig(num_heads=2, num_layers=3, widening_factor=4)
"""What it replaces: AlphaStar's three layers."""


class PerceiverEntities(nn.Module):
    """Entities through latents and back: queries are the entities' features."""

    def __init__(self, config: Config = ENCODER) -> None:
        super().__init__()
        self.features = plain_linear(ENTITY_CHANNELS, FEATURE_CHANNELS)
        self.resampler = Resampler(config, ENTITY_CHANNELS)
        self.decoder = CrossAttention(FEATURE_CHANNELS, config.latents.channels, config.decoder, query_residual=True)
        self.channels = FEATURE_CHANNELS

    def forward(self, entities: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"]) -> Float[Tensor, "b m f"]:
        """Return a vector for each slot."""
        latents = self.resampler(entities, mask)
        return self.decoder(self.features(entities), latents, Mask(queries=mask))


class TransformerEntities(nn.Module):
    """The trunk of AlphaStar: three layers of two heads of 128, MLP of 1,024, in which all entities attend to all."""

    def __init__(self, config: ProcessorConfig = TRANSFORMER) -> None:
        super().__init__()
        self.layers = Process(Config(LatentsConfig(channels=ENTITY_CHANNELS), processor=config))
        self.channels = ENTITY_CHANNELS

    def forward(self, entities: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"]) -> Float[Tensor, "b m c"]:
        """Return a vector for each slot."""
        return self.layers(entities, Mask(keys=mask))


class EntityEncoder(nn.Module):
    """A vector for each entity and one for all of them, from either trunk; slots without an entity count nowhere."""

    def __init__(self, trunk: PerceiverEntities | TransformerEntities) -> None:
        super().__init__()
        self.trunk = trunk
        self.each = plain_linear(trunk.channels, ENTITY_CHANNELS)  # a convolution over slots of width 1
        self.all = plain_linear(trunk.channels, ENTITY_CHANNELS)

    def forward(
        self, entities: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b m c"], Float[Tensor, "b c"]]:
        """Return entity embeddings, 0 in empty slots, and the embedded entity."""
        out = self.trunk(entities, mask)
        there = mask[..., None]
        mean = torch.where(there, out, 0).sum(dim=1) / there.sum(dim=1).clamp(min=1)
        return torch.where(there, self.each(out.relu()), 0), self.all(mean).relu()


def schema() -> Schema:
    """Return a schema: units in; types of those that are hidden, and both players' statistics, out."""
    units = Records(
        fields={
            "type": CategoryField(channels=32),
            "owner": CategoryField(classes=3, channels=8),
            **{name: NumberField() for name in ("x", "y", "age")},
        },
        max_records=512,
        field_mask_prob={"type": HIDDEN},
        field_mask_at_eval=True,
    )
    hidden = Records(key="units", fields={"type": CategoryField()}, of="units", hidden_only=True)
    statistics = Records(
        fields={f"{name}_{pid}": NumberField() for pid in (1, 2) for name in STATISTICS}, query_channels=128
    )
    return Schema(inputs={"units": units}, outputs={"hidden": hidden, "statistics": statistics})
