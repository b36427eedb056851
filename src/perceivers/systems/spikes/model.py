"""POYO's model of spikes at small sizes, and the same model with Fourier features of time (Azabou et al. 2023).

    token = embedding of the unit + embedding of the kind of event;   query = embedding of the session

Times act by rotary positions of tokens, latents and queries. In the Fourier model, times are features of tokens and
queries, and the latents have no places.
"""

from dataclasses import replace
from typing import Any

from perceivers.core.block_config import Axis, Rotary
from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentAxis, LatentsConfig, ProcessorConfig
from perceivers.data.spike_trains import KINDS
from perceivers.modalities import Label, PointSet, Records
from perceivers.modalities.fields import CategoryField, NumberField
from perceivers.modalities.position_encodings import Fourier
from perceivers.schema import Schema

CHANNELS = 64
"""Width of tokens, latents and queries."""

PLACES, PER_PLACE = 8, 8
"""Number of times at which latents stand, and of latents at each."""

ROTARY = Rotary((Axis("time", min_wavelength=0.001, max_wavelength=4.0),), values=True)
"""Rotary positions of times in seconds; values are rotated too (POYO)."""

BLOCK: dict[str, Any] = {
    "num_heads": 2,
    "widening_factor": 4,
    "gated": True,
    "activation": "gelu_erf",
    "qkv_bias": False,
}
"""Settings of all blocks (POYO)."""

POSITIONS = Fourier(num_bands=32, max_resolution=200)
"""Fourier features of time in a window, which resolve 5 ms."""

CONFIG = Config(
    LatentsConfig(
        num_latents=PLACES * PER_PLACE,
        channels=CHANNELS,
        places=(LatentAxis("time", 0.0, 1.0, count=PLACES),),
        per_place=PER_PLACE,
    ),
    EncoderConfig(rotary=ROTARY, **BLOCK),
    ProcessorConfig(rotary=ROTARY, num_layers=3, **BLOCK),
    DecoderConfig(rotary=replace(ROTARY, values=False), query_residual=True, **BLOCK),
)
"""Sizes of the model with rotary positions."""

FOURIER_CONFIG = Config(
    LatentsConfig(num_latents=PLACES * PER_PLACE, channels=CHANNELS),
    EncoderConfig(**BLOCK),
    ProcessorConfig(num_layers=3, **BLOCK),
    DecoderConfig(query_residual=True, **BLOCK),
)
"""Sizes of the model with Fourier features."""

SHARED = (
    *("latents", "encoder", "processor", "decoder", "output_adapter", "input_adapter.alignment"),
    "input_adapter.adapters.spikes.encodings.fields.1",  # kinds of events
)
"""Parts that all sessions share: everything but the embeddings of units and of sessions."""

UNITS: dict[str, Any] = {"mean": (0.0, 0.0), "std": (10.0, 10.0)}
"""Scale of velocities, in cm/s; the same for all data, so that models can be transferred."""


def schema() -> Schema:
    """Return a schema with events and the session as inputs, and the velocity at any times as output."""
    spikes = Records(_fields(NumberField(mean=0.0, std=1.0)), combine="sum", coordinate_fields=("time",))
    velocity = PointSet(
        axes=1, channels=2, bounds=((0.0, 1.0),), axis_names=("time",), of="session", positions=None, **UNITS
    )
    return Schema({"spikes": spikes, "session": Label(role="query")}, {"velocity": velocity})


def fourier_schema() -> Schema:
    """Return the same schema with Fourier features of time."""
    time = NumberField(mean=0.5, std=0.5, positions=POSITIONS)  # times from 0 to 1 become -1 to 1
    velocity = PointSet(axes=1, channels=2, bounds=((0.0, 1.0),), of="session", positions=POSITIONS, **UNITS)
    return Schema({"spikes": Records(_fields(time)), "session": Label(role="query")}, {"velocity": velocity})


def _fields(time: NumberField) -> dict[str, CategoryField | NumberField]:
    kind = CategoryField(classes=KINDS, channels=CHANNELS)
    return {"unit": CategoryField(channels=CHANNELS), "kind": kind, "time": time}
