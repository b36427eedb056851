"""The schema and the sizes of the model of a weather station, which reads a few hours at a time."""

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.data import WeatherStreams
from perceivers.data.published.nyc_weather import UNITS
from perceivers.modalities import Series
from perceivers.modalities.position_encodings import Fourier
from perceivers.schema import Schema
from perceivers.systems.leads.model import CLOCK

CONFIG = Config(
    latents=LatentsConfig(num_latents=8, channels=64),
    encoder=EncoderConfig(num_heads=4, dropout=0.1),
    processor=ProcessorConfig(num_heads=4, num_layers=2, dropout=0.1, final_norm=True),
    decoder=DecoderConfig(num_heads=4, query_residual=True, dropout=0.1),
)
"""Sizes of the model. The final norm bounds the latents that are carried on, over any number of windows."""


def schema(data: WeatherStreams, carry: bool) -> Schema:
    """Return the schema: a window in, the changes of the next hours out; `carry`: latents are carried on."""
    return Schema(
        inputs={
            "past": Series(
                size=data.window,
                channels=2 * len(UNITS),
                positions=Fourier(num_bands=4, max_resolution=max(data.window, 2)),
            ),
            "clock": CLOCK,
        },
        outputs={
            "change": Series(
                size=data.ahead, channels=len(UNITS), positions=Fourier(num_bands=8, max_resolution=data.ahead)
            )
        },
        stream="airport" if carry else None,
    )
