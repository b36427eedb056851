"""Sizes of a model from the shapes of its arrays. Values are named by their path within a preset."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from perceivers.modalities.grid import Grid
from perceivers.modalities.modality import Modality
from perceivers.modalities.position_encodings import Fourier
from perceivers.schema.preset import Preset

Weights = Mapping[str, Tensor]

Values = dict[str, Any]
"""Values by path, such as "config.decoder.num_heads" or "schema.inputs.text.length"."""

STAGES = {
    "encoder": "trunk.encoder.0.cross_attention",
    "processor": "trunk.processor.0.layers.0",
    "decoder": "decoder.cross_attention",
}
"""Name of the block whose arrays show the widths of a stage, by stage."""

INPUT, OUTPUT = "schema.inputs.", "schema.outputs."


def sized(preset: Preset, family: str, weights: Weights) -> Preset:
    """Return the preset with the sizes that the arrays' shapes determine; ValueError if they fit no such model."""
    return changed(preset, {**_config(preset, weights), **SIZES[family](preset, weights)})


def value_at(preset: Preset, path: str) -> Any:
    """Return the value at a path."""
    node: Any = preset
    for name in path.split("."):
        node = node[name] if isinstance(node, Mapping) else getattr(node, name)
    return node


def changed(preset: Preset, values: Mapping[str, Any]) -> Preset:
    """Return the preset with other values at these paths."""
    for path, value in values.items():
        preset = _replaced(preset, path.split("."), value)
    return preset


def widths(weights: Weights, stage: str) -> dict[str, int]:
    """Return the widths of a stage's block: query vectors, tokens, projected queries and keys, values, MLP."""
    block = STAGES[stage]
    qk_channels, query = weights[f"{block}.attention.query.weight"].shape
    v_channels, token = weights[f"{block}.attention.value.weight"].shape
    hidden = len(weights[f"{block}.mlp.hidden.weight"])
    return {"query": query, "token": token, "qk": qk_channels, "v": v_channels, "hidden": hidden}


def axes_of(spec: Modality) -> int:
    """Return the number of axes of an image, a video, a sound or a pair of frames."""
    return spec.axes if isinstance(spec, Grid) else 2


def _replaced(node: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    name, *rest = path
    if isinstance(node, Mapping):
        return {**node, name: _replaced(node[name], rest, value)}
    return replace(node, **{name: _replaced(getattr(node, name), rest, value)})


def _config(preset: Preset, weights: Weights) -> Values:
    num_latents, channels = weights["trunk.latents"].shape
    layers = {name.split(".")[4] for name in weights if name.startswith("trunk.processor.0.layers.")}
    values: Values = {
        "config.latents.num_latents": num_latents,
        "config.latents.channels": channels,
        "config.processor.num_layers": len(layers),
    }
    for stage in STAGES:
        given, seen = getattr(preset.config, stage), widths(weights, stage)
        # A width that the preset leaves open (None) stays open if its default equals the width of the arrays.
        if (given.qk_channels or seen["token"]) != seen["qk"]:
            values[f"config.{stage}.qk_channels"] = seen["qk"]
        if (given.v_channels or seen["qk"]) != seen["v"]:
            values[f"config.{stage}.v_channels"] = seen["v"]
        if seen["hidden"] % seen["query"]:
            raise ValueError(f"{STAGES[stage]}.mlp: {seen['hidden']} is not a multiple of {seen['query']} channels")
        values[f"config.{stage}.widening_factor"] = seen["hidden"] // seen["query"]
    return values


def _language(preset: Preset, weights: Weights) -> Values:
    vocab_size, channels = weights["input_adapter.adapters.text.embedding.weight"].shape
    length = len(weights["input_adapter.adapters.text.positions.table"])
    query_channels = weights["output_query.queries.restored.table"].shape[1]
    text = {"vocab_size": vocab_size, "channels": channels, "length": length}
    return {
        **{f"{side}.{name}": x for side in (f"{INPUT}text", f"{OUTPUT}restored") for name, x in text.items()},
        f"{OUTPUT}restored.query_channels": query_channels,
    }


def _imagenet(preset: Preset, weights: Weights) -> Values:
    return {
        **_label(preset, f"{OUTPUT}label", len(weights["output_adapter.adapters.label.head.weight"])),
        f"{OUTPUT}label.query_channels": weights["output_query.queries.label.table"].shape[1],
    }


def _imagenet_fourier(preset: Preset, weights: Weights) -> Values:
    bands = _bands(preset, f"{INPUT}image", widths(weights, "encoder")["token"], _values_of_patch(preset, "image"))
    return _imagenet(preset, weights) | bands


def _imagenet_conv(preset: Preset, weights: Weights) -> Values:
    embed, channels = weights["input_adapter.adapters.image.stem.convolutions.0.weight"].shape[:2]
    bands = _bands(preset, f"{INPUT}image", widths(weights, "encoder")["token"], embed)
    image = {f"{INPUT}image.embed": embed, f"{INPUT}image.channels": channels}
    return _imagenet(preset, weights) | image | bands


def _imagenet_learned(preset: Preset, weights: Weights) -> Values:
    count, channels = weights["input_adapter.adapters.image.positions.source.table"].shape
    given = value_at(preset, f"{INPUT}image")
    values = _imagenet(preset, weights) | {
        f"{INPUT}image.embed": len(weights["input_adapter.adapters.image.stem.weight"]),
        f"{INPUT}image.positions.channels": channels,
        f"{INPUT}image.positions.project": len(weights["input_adapter.adapters.image.positions.projection.weight"]),
    }
    if math.prod(given.grid) == count:
        return values
    side = math.isqrt(count)
    if side * side != count or set(given.steps) != {1}:
        raise ValueError(f"{count} trained positions are not those of an image of {given.grid}, nor of a square one")
    return values | {f"{INPUT}image.size": side}


def _optical_flow(preset: Preset, weights: Weights) -> Values:
    embed = len(weights["input_adapter.adapters.frames.embed.weight"])
    bands = _bands(preset, f"{INPUT}frames", widths(weights, "encoder")["token"], embed)
    return {f"{INPUT}frames.embed": embed} | bands


def _multimodal(preset: Preset, weights: Weights) -> Values:
    tokens, queries = widths(weights, "encoder")["token"], widths(weights, "decoder")["query"]
    paddings = {name: len(weights[f"input_adapter.alignment.paddings.{name}"]) for name in preset.schema.inputs}
    query_paddings = {name: len(weights[f"output_query.alignment.paddings.{name}"]) for name in preset.schema.outputs}
    samples = len(weights["output_adapter.adapters.audio.head.weight"])
    patched = changed(preset, {f"{side}audio.patch": samples for side in (INPUT, OUTPUT)})
    classes = tokens - paddings["label"]
    return {
        **{f"{side}audio.patch": samples for side in (INPUT, OUTPUT)},
        **_bands(patched, f"{INPUT}audio", tokens - paddings["audio"], _values_of_patch(patched, "audio")),
        **_bands(patched, f"{INPUT}image", tokens - paddings["image"], _values_of_patch(patched, "image")),
        **_bands(patched, f"{OUTPUT}audio", queries - query_paddings["audio"], 0),
        **_bands(patched, f"{OUTPUT}image", queries - query_paddings["image"], 0),
        **_label(preset, f"{INPUT}label", classes),
        **_label(preset, f"{OUTPUT}label", classes),
        f"{OUTPUT}label.query_channels": weights["output_query.queries.label.table"].shape[1],
        "config.encoder.min_padding": min(paddings.values()),
        "config.decoder.min_padding": min(query_paddings.values()),
        "config.decoder.output_channels": len(weights["decoder.output.weight"]),
    }


SIZES: dict[str, Callable[[Preset, Weights], Values]] = {
    "language": _language,
    "imagenet-fourier": _imagenet_fourier,
    "imagenet-learned": _imagenet_learned,
    "imagenet-conv": _imagenet_conv,
    "optical-flow": _optical_flow,
    "multimodal": _multimodal,
}
"""Function that returns the sizes of inputs and outputs from the shapes, by released model."""


def _label(preset: Preset, path: str, classes: int) -> Values:
    """Return the number of classes; nothing if the preset has as many, so that their names stay."""
    if classes < 1:
        raise ValueError(f"{path}: its padding is as wide as a token, which leaves no channel for a class")
    return {} if value_at(preset, path).num_classes == classes else {f"{path}.classes": classes}


def _values_of_patch(preset: Preset, name: str) -> int:
    spec = value_at(preset, INPUT + name)
    return spec.channels * math.prod(spec.steps)


def _bands(preset: Preset, path: str, width: int, content: int) -> Values:
    """Return the number of Fourier bands, from the width of a token or query and that of its content."""
    positions = value_at(preset, f"{path}.positions")
    if not isinstance(positions, Fourier):
        raise ValueError(f"{path}.positions must be Fourier positions, as those of the released model are")
    axes = axes_of(value_at(preset, path))
    waves = axes * (1 if positions.sine_only else 2)
    bands, rest = divmod(width - content - axes * positions.with_coordinates, waves)
    if rest or bands < 1:
        raise ValueError(
            f"{path}: {width} channels are not {content} of content and Fourier features of {axes} coordinates"
        )
    return {f"{path}.positions.num_bands": bands}
