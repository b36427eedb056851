"""POYO (Azabou et al. 2023): spikes to behaviour, with times that act by rotary positions. Source: torch_brain.

    token = embedding of the unit + embedding of the token type;   query = embedding of the session
    latents: the same vectors at every step of a grid of times

As a schema: the input "spikes", records of "unit", "type" and "time" (seconds); the input "session", a class number;
the output "readout", at points [O, 1] of time. Class numbers are rows of POYO. An unknown unit has row 0, "NA" in POYO,
and an unknown type has row 0, the type of a spike.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from perceivers.core.block_config import Axis, Rotary
from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentAxis, LatentsConfig, ProcessorConfig
from perceivers.modalities import Label, PointSet, Records
from perceivers.modalities.fields import CategoryField, Field, NumberField
from perceivers.pretrained.relatives.arrays import Arrays, Shapes, Weights, attention, in_float32, linear, norm
from perceivers.schema import Schema

VOCABULARIES = {"unit_emb.vocab": "unit_emb.weight", "session_emb.vocab": "session_emb.weight"}
"""Entries of a state dict that name the rows of an embedding, and the embedding."""

TIME = "time"


@dataclass(frozen=True)
class PoyoSettings:
    """Settings that the arrays of a POYO do not tell, named as in its constructor, which has no defaults for them."""

    sequence_length: float | None = None
    """Length of a window, in seconds; must be given."""
    latent_step: float | None = None
    """Distance of the steps of the latents, in seconds; must be given."""
    prefix: str | None = None
    """What comes before the names of the arrays; None: found."""


@dataclass(frozen=True)
class Sizes:
    """Sizes that the arrays give."""

    channels: int
    """Width of tokens, latents and queries."""
    per_step: int
    """Latents at each step."""
    rows: Mapping[str, int]
    """Rows of the three embeddings."""
    outputs: int
    """Numbers decoded at a point."""
    head: int
    """Width of a head."""
    inner: Mapping[str, int]
    """Width of all heads together, by stage."""
    widening: Mapping[str, int]
    """Hidden width of the MLP, as a multiple of the width, by stage."""
    depth: int
    """Layers of the processor."""


def from_poyo(state: Mapping[str, Any], settings: PoyoSettings) -> tuple[Schema, Config, Weights]:
    """Return schema, config and weights of our model for a POYO's state dict, with or without its vocabularies.

    ValueError naming an array that is missing, left over or of a wrong shape, or a setting that is missing.
    """
    everything = Arrays.of(state, "POYO", "latent_emb.weight", settings.prefix)
    names = {name: everything.tensors[name] for name in VOCABULARIES if name in everything}
    arrays = everything.without(*VOCABULARIES)
    sizes = _sizes(arrays)
    arrays.check(poyo_shapes(sizes))
    rotary = _rotary(arrays)
    steps = _steps(settings)
    classes = {
        name: _classes(everything.prefix + name, names.get(name), sizes.rows[rows])
        for name, rows in VOCABULARIES.items()
    }
    return _schema(sizes, classes, steps), _config(sizes, rotary, steps), _weights(arrays, sizes, rotary)


def _sizes(arrays: Arrays) -> Sizes:
    per_step, channels = arrays.shape("latent_emb.weight", 2)
    (pairs,) = arrays.shape("rotary_emb.omega", 1)
    depth = arrays.count("proc_layers")
    blocks = {"encoder": "enc", "processor": "proc_layers.0", "decoder": "dec"}
    inner, widening = {}, {}
    for stage, block in blocks.items():
        if stage == "processor" and not depth:
            inner[stage], widening[stage] = 2 * pairs, 1
            continue
        attends, mlp = (f"{block}.0", f"{block}.1") if stage == "processor" else (f"{block}_atn", f"{block}_ffn")
        arrays.multiple(
            f"{attends}.to_out.weight", 1, 2 * pairs, "channels of a head, two for each of rotary_emb.omega"
        )
        inner[stage] = arrays.shape(f"{attends}.to_out.weight", 2)[1]
        widening[stage] = arrays.multiple(f"{mlp}.1.net.3.weight", 1, channels, "channels of latent_emb.weight")
    rows = {name: arrays.shape(name, 2)[0] for name in (*VOCABULARIES.values(), "token_type_emb.weight")}
    outputs = arrays.shape("readout.weight", 2)[0]
    return Sizes(channels, per_step, rows, outputs, 2 * pairs, inner, widening, depth)


def poyo_shapes(sizes: Sizes) -> Shapes:
    """Return the shape of each array."""
    d, inner = sizes.channels, sizes.inner
    shapes: Shapes = {name: (rows, d) for name, rows in sizes.rows.items()}
    shapes |= {"latent_emb.weight": (sizes.per_step, d), "rotary_emb.omega": (sizes.head // 2,)}
    for stage, block in (("encoder", "enc"), ("decoder", "dec")):
        shapes |= attention(f"{block}_atn", d, d, inner[stage])
        shapes |= norm(f"{block}_atn.norm", d) | norm(f"{block}_atn.norm_context", d)
        shapes |= _mlp_shapes(f"{block}_ffn", d, sizes.widening[stage])
    for block in (f"proc_layers.{number}" for number in range(sizes.depth)):
        shapes |= linear(f"{block}.0.to_qkv", d, 3 * inner["processor"], bias=False)
        shapes |= linear(f"{block}.0.to_out", inner["processor"], d) | norm(f"{block}.0.norm", d)
        shapes |= _mlp_shapes(f"{block}.1", d, sizes.widening["processor"])
    return shapes | linear("readout", d, sizes.outputs)


def _mlp_shapes(name: str, d: int, widening: int) -> Shapes:
    hidden = widening * d
    return norm(f"{name}.0", d) | linear(f"{name}.1.net.0", d, 2 * hidden) | linear(f"{name}.1.net.3", hidden, d)


def _rotary(arrays: Arrays) -> Rotary:
    """Return the rotary positions: the share of rotated channels and the wavelengths at both ends."""
    omega = arrays["rotary_emb.omega"].double()
    pairs = int((omega != 0).sum())
    if not pairs or not bool(omega.isfinite().all()) or not bool((omega[:pairs] > 0).all()):
        right = "numbers above 0 for the rotated channels, then zeros"
        raise ValueError(f"{arrays.prefix}rotary_emb.omega: {omega.tolist()!s:.99} should be {right}")
    share = pairs / len(omega)
    if int(share * len(omega)) != pairs:  # rounded down: a little more is still as many pairs
        share = (pairs + 0.25) / len(omega)
    # The periods that a constructor was given, from those of float32.
    low, high = (float(f"{2 * math.pi / x:.6g}") for x in (float(omega.max()), float(omega[:pairs].min())))
    return Rotary((Axis(TIME, low, high),), share, values=True)


def _steps(settings: PoyoSettings) -> LatentAxis:
    """Return the steps of the latents; the last one may reach beyond the window."""
    length = _seconds("sequence_length", settings.sequence_length)
    step = _seconds("latent_step", settings.latent_step)
    count = math.ceil(length / step)  # as numpy's arange counts
    return LatentAxis(TIME, 0.0, count * step, count)


def _seconds(name: str, value: float | None) -> float:
    if value is None:
        raise ValueError(f"{name} is missing: the arrays do not tell it: give {name}, in seconds")
    if not 1e-9 <= value <= 1e9:
        raise ValueError(f"{name} = {value} must be a number of seconds above 0")
    return value


def _classes(name: str, vocabulary: Any, rows: int) -> int | tuple[str, ...]:
    """Return the names of an embedding's rows in their order; without a vocabulary the number of rows."""
    if vocabulary is None:
        return rows
    if not isinstance(vocabulary, Mapping) or sorted(map(str, vocabulary.values())) != sorted(map(str, range(rows))):
        raise ValueError(f"{name} should be a table of names to the numbers 0 to {rows - 1} of the embedding's rows")
    return tuple(str(word) for word, _ in sorted(vocabulary.items(), key=lambda item: item[1]))


def _schema(sizes: Sizes, classes: Mapping[str, int | tuple[str, ...]], steps: LatentAxis) -> Schema:
    fields: dict[str, Field] = {
        "unit": CategoryField(classes["unit_emb.vocab"], sizes.channels),
        "type": CategoryField(sizes.rows["token_type_emb.weight"], sizes.channels),
        TIME: NumberField(mean=0.0, std=1.0),
    }
    spikes = Records(fields, combine="sum", coordinate_fields=(TIME,))
    session = Label(classes=classes["session_emb.vocab"], role="query")
    readout = PointSet(
        axes=1,
        channels=sizes.outputs,
        bounds=((steps.start, steps.stop),),
        positions=None,
        axis_names=(TIME,),
        of="session",
        mean=(0.0,),
        std=(1.0,),
    )
    return Schema({"spikes": spikes, "session": session}, {"readout": readout})


def _config(sizes: Sizes, rotary: Rotary, steps: LatentAxis) -> Config:
    def block(stage: str) -> dict[str, Any]:
        inner = sizes.inner[stage]
        return {
            "num_heads": inner // sizes.head,
            "qk_channels": inner,
            "rotary": rotary,
            "widening_factor": sizes.widening[stage],
            "activation": "gelu_erf",
            "gated": True,
            "qkv_bias": False,
        }

    count = steps.count * sizes.per_step
    return Config(
        LatentsConfig(count, sizes.channels, places=(steps,), per_place=sizes.per_step),
        EncoderConfig(channel_alignment="pad", **block("encoder")),
        ProcessorConfig(num_layers=sizes.depth, **block("processor")),
        DecoderConfig(query_residual=True, **block("decoder") | {"rotary": replace(rotary, values=False)}),
    )


def _weights(arrays: Arrays, sizes: Sizes, rotary: Rotary) -> Weights:
    fields = "input_adapter.adapters.spikes.encodings.fields"
    session = arrays["session_emb.weight"].T
    found = {
        "trunk.latents": arrays["latent_emb.weight"],
        f"{fields}.0.embedding.weight": _with_unknown(arrays["unit_emb.weight"]),
        f"{fields}.1.embedding.weight": _with_unknown(arrays["token_type_emb.weight"]),
        "output_query.alignment.projections.readout.weight": session,
        "output_query.alignment.projections.readout.bias": torch.zeros(len(session), dtype=session.dtype),
    }
    found |= arrays.renamed({"output_adapter.adapters.readout.head": "readout"})
    for ours, theirs in (("trunk.encoder.0.cross_attention", "enc"), ("decoder.cross_attention", "dec")):
        norms = {"query_norm": f"{theirs}_atn.norm", "token_norm": f"{theirs}_atn.norm_context"}
        found |= arrays.attention(f"{ours}.attention", f"{theirs}_atn")
        found |= arrays.renamed({f"{ours}.{name}": module for name, module in norms.items()})
        found |= _mlp(arrays, ours, f"{theirs}_ffn")
    for number in range(sizes.depth):
        ours, theirs = f"trunk.processor.0.layers.{number}", f"proc_layers.{number}"
        found |= arrays.attention(f"{ours}.attention", f"{theirs}.0", "to_qkv")
        found |= arrays.renamed({f"{ours}.norm": f"{theirs}.0.norm"}) | _mlp(arrays, ours, f"{theirs}.1")
    omega = in_float32(arrays["rotary_emb.omega"])
    frequencies = omega[None, omega != 0]
    blocks = [name.removesuffix("query.weight") for name in found if name.endswith(".attention.query.weight")]
    return found | {f"{block}rotary.frequencies": frequencies for block in blocks}


def _mlp(arrays: Arrays, ours: str, theirs: str) -> Weights:
    parts = {"mlp_norm": "0", "mlp.hidden": "1.net.0", "mlp.output": "1.net.3"}
    return arrays.renamed({f"{ours}.{name}": f"{theirs}.{number}" for name, number in parts.items()})


def _with_unknown(table: Tensor) -> Tensor:
    """Return an embedding whose first row, for unknown classes, is a copy of row 0."""
    return torch.cat([table[:1], table])
