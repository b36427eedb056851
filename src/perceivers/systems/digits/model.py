"""The schema and the sizes of the digits model: one set as input, two outputs decoded from the same latents."""

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.modalities import Image, Label, PointSet
from perceivers.modalities.position_encodings import Fourier
from perceivers.schema import Schema

SIDE = 8
"""Side of a digit in pixels."""

CONFIG = Config(
    latents=LatentsConfig(num_latents=16, channels=96),
    encoder=EncoderConfig(num_heads=4),
    processor=ProcessorConfig(num_layers=4, num_heads=4),
    decoder=DecoderConfig(num_heads=4),
)
"""Sizes of the model."""


def schema() -> Schema:
    """Return the schema: a set of some pixels as input, the class and the whole picture as outputs."""
    positions = Fourier(num_bands=8, max_resolution=SIDE)
    return Schema(
        inputs={
            "pixels": PointSet(axes=2, channels=1, positions=positions, subsample=(0.1, 1.0), subsample_at_eval=True)
        },
        outputs={
            "label": Label(classes=10, query_channels=64),
            "image": Image(size=SIDE, channels=1, positions=positions),
        },
    )
