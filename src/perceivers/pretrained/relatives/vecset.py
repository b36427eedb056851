"""3DShape2VecSet (Zhang et al. 2023): points of a surface to the occupancy of space. Source: models_ae.py.

    latents: the embeddings of some points, each the farthest from those before it;   (a bottleneck: `KLAutoEncoder`)
    embedding of a point: a linear map of its coordinates and their sines and cosines in octaves

As a schema: the input "points", [B, M, axes] within -1 to 1; the output "occupancy", at any points. In the original one
module embeds points, latents and queries. Here inputs and queries each have a copy of its weights, which training may
change apart. Layers whose weights are tied have a copy each, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from perceivers.core.config import (
    BottleneckConfig,
    Config,
    DecoderConfig,
    EncoderConfig,
    LatentsConfig,
    ProcessorConfig,
)
from perceivers.modalities import PointSet
from perceivers.modalities.position_encodings import MOST_OCTAVES, Fourier
from perceivers.pretrained.relatives.arrays import Arrays, Shapes, Weights, attention, linear, norm, num_heads
from perceivers.schema import Schema

BOTTLENECK = {"bottleneck.mean": "mean_fc", "bottleneck.log_variance": "logvar_fc", "bottleneck.output": "proj"}
"""Maps of the bottleneck: ours, and theirs in `KLAutoEncoder`."""

MLP = {"mlp_norm": "norm", "mlp.hidden": "fn.net.0", "mlp.output": "fn.net.2"}

HEADS = (8, 64)
"""Number and width of the heads of the processor by default (`AutoEncoder`, `KLAutoEncoder`)."""

STOCHASTIC_DEPTH = 0.1
"""Probability that training skips a branch of the processor (`drop_path_rate`)."""


@dataclass(frozen=True)
class VecsetSettings:
    """What the arrays of a 3DShape2VecSet do not tell, by the names of its constructor."""

    num_latents: int | None = None
    """Number of points that become latents; must be given."""
    heads: int | None = None
    """Heads of the processor; None: 8 if they are 64 wide, the constructor's defaults."""
    dim_head: int | None = None
    """Width of a head of the processor, in place of `heads`."""
    prefix: str | None = None
    """What comes before the names of the arrays; None: found."""


@dataclass(frozen=True)
class Sizes:
    """Sizes that the arrays give."""

    axes: int
    """Coordinates of a point."""
    bands: int
    """Octaves."""
    channels: int
    """Width of tokens, latents and queries."""
    outputs: int
    """Numbers decoded at a point."""
    depth: int
    """Layers of the processor."""
    inner: int
    """Width of all heads of a layer of the processor together."""
    widening: tuple[int, int, int]
    """Hidden width of the MLP, as a multiple of the width, of reading, processing and writing; 0: no MLP."""
    drawn: int | None
    """Width of a sample of the bottleneck; None: there is no bottleneck."""


def from_vecset(state: Mapping[str, Any], settings: VecsetSettings) -> tuple[Schema, Config, Weights]:
    """Return schema, config and weights of our model for the state dict of an `AutoEncoder` or a `KLAutoEncoder`.

    ValueError naming an array that is missing, left over or of a wrong shape, or a setting that is missing.
    """
    arrays = Arrays.of(state, "3DShape2VecSet", "point_embed.basis", settings.prefix)
    sizes = _sizes(arrays)
    arrays.check(vecset_shapes(sizes))
    _check_octaves(arrays, sizes)
    if settings.num_latents is None:
        raise ValueError("num_latents is missing: the arrays do not tell it: give num_latents")
    given = {"heads": settings.heads, "dim_head": settings.dim_head}
    heads = num_heads(sizes.inner, given, HEADS, f"{arrays.prefix}layers.0.0.fn.to_q.weight") if sizes.depth else 1
    return _schema(sizes), _config(sizes, settings.num_latents, heads), _weights(arrays, sizes)


def _sizes(arrays: Arrays) -> Sizes:
    axes = arrays.shape("point_embed.basis", 2)[0]
    bands = arrays.multiple("point_embed.basis", 1, axes, "axes of point_embed.basis")
    channels, depth = arrays.shape("point_embed.mlp.weight", 2)[0], arrays.count("layers")
    has_mlp = any(name.startswith("decoder_ff.") for name in arrays.tensors)
    has_bottleneck = any(name.startswith(f"{map_}.") for map_ in BOTTLENECK.values() for name in arrays.tensors)
    mlps = {"cross_attend_blocks.1": True, "layers.0.1": depth > 0, "decoder_ff": has_mlp}
    read, processed, written = (
        arrays.multiple(f"{mlp}.fn.net.2.weight", 1, channels, "channels of point_embed.mlp.weight") if there else 0
        for mlp, there in mlps.items()
    )
    return Sizes(
        axes,
        bands,
        channels,
        arrays.shape("to_outputs.weight", 2)[0],
        depth,
        arrays.shape("layers.0.0.fn.to_q.weight", 2)[0] if depth else channels,
        (read, processed, written),
        arrays.shape("mean_fc.weight", 2)[0] if has_bottleneck else None,
    )


def vecset_shapes(sizes: Sizes) -> Shapes:
    """Return the shape of each array."""
    d, waves = sizes.channels, sizes.axes * sizes.bands
    read, processed, written = sizes.widening
    shapes: Shapes = {"point_embed.basis": (sizes.axes, waves)}
    shapes |= linear("point_embed.mlp", 2 * waves + sizes.axes, d)
    for block in ("cross_attend_blocks.0", "decoder_cross_attn"):
        shapes |= attention(f"{block}.fn", d, d, d) | norm(f"{block}.norm", d) | norm(f"{block}.norm_context", d)
    shapes |= _mlp_shapes("cross_attend_blocks.1", d, read)
    for layer in (f"layers.{number}" for number in range(sizes.depth)):
        shapes |= attention(f"{layer}.0.fn", d, d, sizes.inner) | norm(f"{layer}.0.norm", d)
        shapes |= _mlp_shapes(f"{layer}.1", d, processed)
    shapes |= _mlp_shapes("decoder_ff", d, written) if written else {}
    if (drawn := sizes.drawn) is not None:
        shapes |= linear("mean_fc", d, drawn) | linear("logvar_fc", d, drawn) | linear("proj", drawn, d)
    return shapes | linear("to_outputs", d, sizes.outputs)


def _mlp_shapes(name: str, d: int, widening: int) -> Shapes:
    hidden = widening * d
    return norm(f"{name}.norm", d) | linear(f"{name}.fn.net.0", d, 2 * hidden) | linear(f"{name}.fn.net.2", hidden, d)


def _check_octaves(arrays: Arrays, sizes: Sizes) -> None:
    """Raise a ValueError unless the frequencies of every axis are pi, 2 pi, 4 pi, ..."""
    octaves = torch.pi * 2.0 ** torch.arange(sizes.bands, dtype=torch.float64)
    expected = torch.block_diag(*[octaves[None]] * sizes.axes)
    found, name = arrays["point_embed.basis"].double(), f"{arrays.prefix}point_embed.basis"
    if sizes.bands > MOST_OCTAVES or not bool(((found - expected).abs() <= 1e-2 * expected).all()):
        raise ValueError(f"{name} should be pi times 1, 2, 4, ... along each axis, and 0 elsewhere")


def _schema(sizes: Sizes) -> Schema:
    common: dict[str, Any] = {
        "axes": sizes.axes,
        "bounds": ((-1.0, 1.0),) * sizes.axes,
        "positions": Fourier(sizes.bands, spacing="octaves", project=sizes.channels),
        "mean": (0.0,),
        "std": (1.0,),
    }
    names = ("x", "y", "z") if sizes.axes <= 3 else tuple(f"x{number}" for number in range(sizes.axes))
    points = PointSet(channels=0, axis_names=names[: sizes.axes], **common)
    return Schema({"points": points}, {"occupancy": PointSet(channels=sizes.outputs, **common)})


def _config(sizes: Sizes, num_latents: int, heads: int) -> Config:
    block: dict[str, Any] = {"qkv_bias": False, "activation": "gelu_erf", "gated": True}
    read, processed, written = sizes.widening
    return Config(
        LatentsConfig(num_latents, sizes.channels, taken_from="points", rule="farthest"),
        EncoderConfig(widening_factor=read, channel_alignment="pad", **block),
        ProcessorConfig(
            heads,
            num_layers=sizes.depth,
            qk_channels=sizes.inner,
            widening_factor=processed,
            stochastic_depth=STOCHASTIC_DEPTH,
            **block,
        ),
        DecoderConfig(widening_factor=written, channel_alignment="pad", **block),
        bottleneck=None if sizes.drawn is None else BottleneckConfig(sizes.drawn),
    )


def _weights(arrays: Arrays, sizes: Sizes) -> Weights:
    # Ours begin with the coordinates, theirs end with them.
    waves, coordinates = arrays["point_embed.mlp.weight"].split([2 * sizes.axes * sizes.bands, sizes.axes], 1)
    embedding = {"weight": torch.cat([coordinates, waves], 1), "bias": arrays["point_embed.mlp.bias"]}
    places = ("input_adapter.adapters.points.positions", "output_query.queries.occupancy.positions")
    found = {f"{place}.projection.{name}": x for place in places for name, x in embedding.items()}
    found |= arrays.renamed({"output_adapter.adapters.occupancy.head": "to_outputs"})
    blocks = {
        "trunk.encoder.0.cross_attention": ("cross_attend_blocks.0", "cross_attend_blocks.1"),
        **{f"trunk.processor.0.layers.{n}": (f"layers.{n}.0", f"layers.{n}.1") for n in range(sizes.depth)},
        "decoder.cross_attention": ("decoder_cross_attn", "decoder_ff"),
    }
    for ours, (attends, mlp) in blocks.items():
        norms = {"norm": "norm"} if "layers" in ours else {"query_norm": "norm", "token_norm": "norm_context"}
        found |= arrays.attention(f"{ours}.attention", f"{attends}.fn")
        found |= arrays.renamed({f"{ours}.{name}": f"{attends}.{theirs}" for name, theirs in norms.items()})
        found |= arrays.renamed({f"{ours}.{name}": f"{mlp}.{theirs}" for name, theirs in MLP.items()})
    return found | arrays.renamed({f"trunk.{ours}": theirs for ours, theirs in BOTTLENECK.items()})
