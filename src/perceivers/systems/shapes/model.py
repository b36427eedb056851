"""The schema and the sizes of the shapes model: 3DShape2VecSet, small (Zhang et al. 2023, arXiv:2301.11445)."""

from perceivers.core.config import BottleneckConfig, Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.modalities import PointSet
from perceivers.modalities.position_encodings import Fourier
from perceivers.schema import Schema


def schema(num_bands: int = 6) -> Schema:
    """Return the schema: points of a surface as input, inside or outside at any point as output."""
    cube = ((-1.0, 1.0),) * 3
    positions = Fourier(num_bands=num_bands, spacing="octaves")
    place = {"axes": 3, "bounds": cube, "positions": positions, "axis_names": ("x", "y", "z")}
    return Schema(
        inputs={"surface": PointSet(channels=0, mean=(), std=(), **place)},
        outputs={"inside": PointSet(channels=1, values="binary", **place)},
    )


def config(num_latents: int = 64, channels: int = 128, num_layers: int = 4) -> Config:
    """Return the sizes: latents taken from the points, a bottleneck, and a decoder that is one attention alone."""
    return Config(
        LatentsConfig(num_latents=num_latents, channels=channels, taken_from="surface", rule="farthest"),
        EncoderConfig(widening_factor=4, gated=True, activation="gelu_erf", qkv_bias=False),
        ProcessorConfig(
            num_heads=8, num_layers=num_layers, widening_factor=4, gated=True, activation="gelu_erf", qkv_bias=False
        ),
        DecoderConfig(widening_factor=0, qkv_bias=False),
        bottleneck=BottleneckConfig(channels=16, weight=0.001),
    )
