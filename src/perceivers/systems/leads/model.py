"""The schemas and the sizes of both weather models: forecasts at any lead time, and streams with a state."""

from dataclasses import replace

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.data.published.nyc_weather import AIRPORTS, UNITS, WeatherLeads
from perceivers.modalities import Numbers, Series
from perceivers.modalities.position_encodings import Fourier
from perceivers.schema import Schema

CLOCK = Numbers(count=2, mean=(0.0, 0.0), std=(1.0, 1.0))
"""Sine and cosine of the time of day. The time of year would tell the weeks of one year apart, to be memorised."""

LEADS = Config(
    latents=LatentsConfig(num_latents=8, channels=32),
    encoder=EncoderConfig(num_heads=4, dropout=0.1),
    processor=ProcessorConfig(num_heads=4, num_layers=1, dropout=0.1),
    decoder=DecoderConfig(num_heads=4, query_residual=True, conditioned=True, dropout=0.1),
)
"""Sizes of the model of lead times: only the decoder knows them, so one encoded past is asked at many.

It is small, since a year of weather is little data: a model twice as wide memorises it.
"""


def leads(data: WeatherLeads) -> Schema:
    """Return the schema of forecasts: the past, and a lead time that conditions the decoder."""
    variables = len(AIRPORTS) * len(UNITS)
    return Schema(
        inputs={
            "past": Series(
                size=data.past, channels=2 * variables, positions=Fourier(num_bands=16, max_resolution=data.past)
            ),
            "clock": CLOCK,
            "lead_time": Numbers(mean=(24.0,), std=(14.0,), role="condition"),
            "lead_clock": replace(CLOCK, role="condition"),
        },
        outputs={"change": Numbers(count=variables, query_channels=64)},
    )
