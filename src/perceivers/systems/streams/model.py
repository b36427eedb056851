"""The schema and the sizes of the model of a sensor, which reads a few readings at a time."""

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.data import SensorStreams
from perceivers.modalities import Series
from perceivers.modalities.position_encodings import Fourier
from perceivers.schema import Schema

CONFIG = Config(
    latents=LatentsConfig(num_latents=8, channels=32),
    encoder=EncoderConfig(num_heads=4),
    processor=ProcessorConfig(num_heads=4, num_layers=2, final_norm=True),
    decoder=DecoderConfig(num_heads=4, query_residual=True),
)
"""Sizes of the model. The final norm bounds the latents that are carried on, over any number of windows."""


def schema(data: SensorStreams, carry: bool) -> Schema:
    """Return the schema: a window in, the readings after it out; `carry`: latents are carried on."""
    past, later = (Fourier(num_bands=4, max_resolution=max(size, 2)) for size in (data.window, data.ahead))
    return Schema(
        inputs={"past": Series(size=data.window, channels=2, positions=past)},
        outputs={"later": Series(size=data.ahead, channels=2, positions=later)},
        stream="sensor" if carry else None,
    )
