"""The schema and the sizes of the shapes model: 3DShape2VecSet, small (Zhang et al. 2023, arXiv:2301.11445)."""

from dataclasses import replace
from typing import Any

from perceivers.core.config import (
    BottleneckConfig,
    Config,
    DecoderConfig,
    EncoderConfig,
    LatentsConfig,
    ProcessorConfig,
)
from perceivers.modalities import PointSet
from perceivers.modalities.position_encodings import Fourier
from perceivers.schema import Schema

BLOCK: dict[str, Any] = {"widening_factor": 4, "gated": True, "activation": "gelu_erf", "qkv_bias": False}
"""Settings of the reading and of the processing."""

CROSS: dict[str, Any] = {"num_heads": 8, "qk_channels": 128, "v_channels": 128, "qkv_bias": False}
"""Settings of the cross-attentions: several heads, where the original has one that is 512 wide."""

CONFIG = Config(
    LatentsConfig(num_latents=48, channels=64, taken_from="surface", rule="farthest"),
    EncoderConfig(**BLOCK | CROSS),
    ProcessorConfig(num_heads=4, num_layers=4, **BLOCK),
    DecoderConfig(widening_factor=0, **CROSS),
    bottleneck=BottleneckConfig(channels=32, weight=0.001),
)
"""Sizes: latents taken from the points, a bottleneck, and a decoder that is one attention alone."""


def schema() -> Schema:
    """Return the schema: points of a surface as input, inside or outside at any point as output."""
    positions = Fourier(num_bands=5, spacing="octaves")
    surface = PointSet(axes=3, channels=0, bounds=((-1.0, 1.0),) * 3, positions=positions, axis_names=("x", "y", "z"))
    return Schema({"surface": surface}, {"inside": replace(surface, channels=1, values="binary", axis_names=())})
