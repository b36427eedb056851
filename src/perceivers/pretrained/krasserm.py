"""The models of krasserm's perceiver-io 0.11: reading and checking config.json, and their options."""

import warnings
from collections.abc import Mapping
from typing import Any

from perceivers.modalities.flow import RESCALE
from perceivers.pretrained.huggingface import MOST_BLOCKS, OPTIONS, part_dropped, whole_number, whole_numbers
from perceivers.pretrained.sizes import INPUT, OUTPUT, STAGES, Values, Weights, value_at, widths
from perceivers.schema.preset import Preset

MODELS = {
    "language": "perceiver-io-masked-language-model",
    "imagenet-fourier": "perceiver-io-image-classifier",
    "optical-flow": "perceiver-io-optical-flow",
}
"""model_type, by released model."""

INPUT_PATHS = {"imagenet-fourier": f"{INPUT}image", "optical-flow": f"{INPUT}frames"}
"""Path of the input whose size config.json gives, by released model."""

CONFIG_KEYS = {
    "encoder": {
        "num_self_attention_blocks": "config.processor.num_blocks",
        "num_self_attention_heads": "config.processor.num_heads",
        "num_cross_attention_heads": "config.encoder.num_heads",
        "num_cross_attention_layers": "config.encoder.num_reads",
    },
    "decoder": {"num_cross_attention_heads": "config.decoder.num_heads"},
}
"""Keys with values that shapes do not determine, by part of the configuration."""

SHAPE_KEYS = {
    "": {"num_latents": "config.latents.num_latents", "num_latent_channels": "config.latents.channels"},
    "encoder": {
        "num_self_attention_layers_per_block": "config.processor.num_layers",
        "cross_attention_widening_factor": "config.encoder.widening_factor",
        "self_attention_widening_factor": "config.processor.widening_factor",
    },
    "decoder": {"cross_attention_widening_factor": "config.decoder.widening_factor"},
}
"""Keys that must agree with the shapes, in all models; "": those outside of encoder and decoder."""

SHAPE_KEYS_OF_MODEL: dict[str, dict[str, dict[str, str]]] = {
    "language": {
        "encoder": {
            "vocab_size": f"{INPUT}text.vocab_size",
            "max_seq_len": f"{INPUT}text.length",
            "num_input_channels": f"{INPUT}text.channels",
        },
        "decoder": {"vocab_size": f"{OUTPUT}restored.vocab_size", "max_seq_len": f"{OUTPUT}restored.length"},
    },
    "imagenet-fourier": {
        "encoder": {"num_frequency_bands": f"{INPUT}image.positions.num_bands"},
        "decoder": {
            "num_classes": f"{OUTPUT}label.num_classes",
            "num_output_query_channels": f"{OUTPUT}label.query_channels",
        },
    },
    "optical-flow": {
        "encoder": {
            "num_frequency_bands": f"{INPUT}frames.positions.num_bands",
            "num_patch_hidden_channels": f"{INPUT}frames.embed",
        },
        "decoder": {},
    },
}
"""Keys that must agree with the shapes if they are there, by model."""

FIXED: dict[str, dict[str, Values]] = {
    "language": {"encoder": {}, "decoder": {"num_output_query_channels": None}},
    "imagenet-fourier": {"encoder": {}, "decoder": {"num_output_queries": 1}},
    "optical-flow": {"encoder": {"num_patch_input_channels": 27}, "decoder": {}},
}
"""Keys that must have this value if they are there, by model."""

WIDTHS = {
    "encoder": {"num_cross_attention": "encoder", "num_self_attention": "processor"},
    "decoder": {"num_cross_attention": "decoder"},
}
"""Stages by the prefix of the two keys of their widths; null means a default that depends on the model."""

SHARED = {
    "first_cross_attention_layer_shared": "num_cross_attention_layers",
    "first_self_attention_block_shared": "num_self_attention_blocks",
}
"""Keys that must be true if there is more than one layer or block: false ones would have further arrays."""

READ_ELSEWHERE = {
    "": {"encoder", "decoder"},
    "encoder": {"dropout", "residual_dropout", "image_shape"},
    "decoder": {"dropout", "residual_dropout", "image_shape", "rescale_factor", "cross_attention_residual"},
}

WITHOUT_EFFECT = {"init_scale", "freeze", "params", "activation_checkpointing", "activation_offloading"}
"""Keys for initialisation and training."""


def read_config(family: str, config: Mapping[str, Any], as_krasserm: bool) -> Values:
    """Return the values that config.json gives, by path; ValueError if they are absurd, or of another model.

    `as_krasserm`: add the options with which krasserm's model computes.
    """
    if config.get("model_type") != MODELS.get(family):
        actual, expected = config.get("model_type"), MODELS.get(family, "none of his")
        raise ValueError(f"config.json: model_type = {actual!r:.99}; the model {family} is {expected}")
    values: Values = {}
    for part, keys in CONFIG_KEYS.items():
        values |= {path: whole_number(_part(config, part), key) for key, path in keys.items()}
    if values["config.processor.num_blocks"] > MOST_BLOCKS:
        raise ValueError(f"config.json: num_self_attention_blocks is more than {MOST_BLOCKS}")
    if values["config.encoder.num_reads"] > 1:
        values["config.encoder.share_reads"] = "all"  # false ones would have further arrays, which are left over
    if family in INPUT_PATHS:
        values |= _input_values(family, config)
    return values | _numerics(family, config) if as_krasserm else values


def check_config(preset: Preset, family: str, weights: Weights, config: Mapping[str, Any]) -> None:
    """Raise a ValueError for the first key that contradicts the arrays: krasserm's model would not load either.

    Warn of unknown keys.
    """
    # Sizes and widths, part by part.
    for part, keys in SHAPE_KEYS.items():
        settings = _part(config, part)
        optional = {key: path for key, path in SHAPE_KEYS_OF_MODEL[family].get(part, {}).items() if key in settings}
        for key, path in (keys | optional).items():
            if whole_number(settings, key) != value_at(preset, path):
                setting, actual = settings[key], value_at(preset, path)
                raise ValueError(f"config.json: {key} = {setting}, but the arrays are those of a model with {actual}")
        for key, value in FIXED[family].get(part, {}).items():
            if settings.get(key, value) != value:
                raise ValueError(f"config.json: {part}: {key} = {settings[key]!r:.99}, but the arrays need {value!r}")
        _check_widths(family, part, settings, weights)
        _check_known(family, part, settings)
    # Sharing of layers and blocks, and the decoder's residual.
    encoder = _part(config, "encoder")
    for key, count in SHARED.items():
        if encoder[count] > 1 and encoder.get(key, True) is not True:
            raise ValueError(f"config.json: {key} = {encoder[key]!r:.99}, but there are arrays for one of {count}")
    residual = preset.config.decoder.query_residual
    if _part(config, "decoder").get("cross_attention_residual") is not residual:
        raise ValueError(f"config.json: cross_attention_residual is not {residual}, as the names of the arrays are")


def _check_widths(family: str, part: str, settings: Mapping[str, Any], weights: Weights) -> None:
    """Raise a ValueError for widths of queries, keys and values that differ from those of the arrays."""
    for begin, stage in WIDTHS.get(part, {}).items():
        actual, reads = widths(weights, stage), stage == "encoder"
        defaults = {
            "qk": actual["token"] if reads and family in INPUT_PATHS else actual["query"],
            "v": actual["token"] if reads and family == "optical-flow" else actual["qk"],
        }
        for name, default in defaults.items():
            key = f"{begin}_{name}_channels"
            width = actual[name]
            if key in settings:
                width = default if settings[key] is None else whole_number(settings, key)
            if width != actual[name]:
                raise ValueError(f"config.json: {part}: {key} comes to {width}, but its arrays have {actual[name]}")


def _check_known(family: str, part: str, settings: Mapping[str, Any]) -> None:
    known = {*CONFIG_KEYS.get(part, ()), *SHAPE_KEYS[part], *SHAPE_KEYS_OF_MODEL[family].get(part, ())}
    known |= {*FIXED[family].get(part, ()), *READ_ELSEWHERE[part], *WITHOUT_EFFECT, *SHARED}
    known |= {f"{begin}_{name}_channels" for begin in WIDTHS.get(part, ()) for name in ("qk", "v")}
    if unknown := sorted(settings.keys() - known):
        where = ".".join(filter(None, ("model_config", part, unknown[0])))
        warnings.warn(f"config.json: {where:.99} is no setting of {MODELS[family]}: it has no effect", stacklevel=4)


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the encoder or decoder part of a configuration; all of it for no name."""
    whole = config.get("model_config")
    part = whole.get(name) if name and isinstance(whole, Mapping) else whole
    if not isinstance(part, Mapping):
        raise ValueError(f"config.json: model_config{name and '.'}{name} is missing: it says how many heads there are")
    return part


def _input_values(family: str, config: Mapping[str, Any]) -> Values:
    """Return the size of images, which is also the resolution of the highest frequencies."""
    encoder, path, flow = _part(config, "encoder"), INPUT_PATHS[family], family == "optical-flow"
    *size, channels = (*_frame(encoder), 3) if flow else whole_numbers(encoder, "image_shape", 3)
    values: Values = {f"{path}.size": tuple(size), f"{path}.positions.max_resolution": tuple(size)}
    if flow and _frame(_part(config, "decoder")) != tuple(size):
        raise ValueError(f"config.json: image_shape of the decoder is not {size}, as that of the encoder")
    if channels != 3:  # the preset's statistics are for 3 channels: such images must come normalised
        values |= {f"{path}.{name}": None for name in ("mean", "std", "value_range")}
        values[f"{path}.channels"] = channels
    return values


def _frame(part: Mapping[str, Any]) -> tuple[int, ...]:
    return whole_numbers(part, "image_shape", 2)


def _numerics(family: str, config: Mapping[str, Any]) -> Values:
    """Return the options of krasserm's models: as transformers, with the erf GELU; the residual is in the names."""
    encoder, decoder = (_part(config, name) for name in ("encoder", "decoder"))
    values = {path: value for path, value in OPTIONS[family].items() if not path.endswith("query_residual")}
    for stage in STAGES:
        part = decoder if stage == "decoder" else encoder
        for key, name in (("dropout", "attention_dropout"), ("residual_dropout", "dropout")):
            values[f"config.{stage}.{name}"] = part_dropped(part, key, 0.0)
        values[f"config.{stage}.activation"] = "gelu_erf"
    if family == "optical-flow":
        rescale: Any = decoder.get("rescale_factor")
        if type(rescale) not in (int, float) or not 0 < rescale < float("inf"):
            raise ValueError(f"config.json: rescale_factor = {rescale!r:.99} is not a number above 0")
        values[f"{OUTPUT}flow.scale"] = RESCALE / rescale
    return values
