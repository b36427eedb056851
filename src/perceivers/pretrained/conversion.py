"""Conversion of the released models from the formats of DeepMind, Hugging Face and krasserm, and to Hugging Face's."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from perceivers.pretrained import krasserm
from perceivers.pretrained.huggingface import (
    OPTIONS,
    check_class,
    check_config,
    check_shapes,
    class_names,
    read_config,
    written_config,
)
from perceivers.pretrained.matching import check_names, count_layers, family_of, pairs, to_ours, to_theirs
from perceivers.pretrained.names import Column
from perceivers.pretrained.sizes import INPUT, OUTPUT, STAGES, Values, changed, sized, value_at
from perceivers.schema.preset import Preset

Converted = tuple[Preset, dict[str, Tensor]]
"""The preset with the sizes of the arrays, and the state_dict of the model that it builds."""

KERNEL = "input_adapter.adapters.image.stem.convolutions.0.weight"

KERNEL_KEY = "conv_kernel_transposed"
"""Key in config.json that only this library writes and reads."""


def from_haiku(
    preset: Preset, params: Mapping[str, np.ndarray | Tensor], state: Mapping[str, np.ndarray | Tensor]
) -> Converted:
    """Convert DeepMind's arrays by "module/name", as `read_haiku` returns them.

    Sizes come from the shapes where these determine them, else from the preset: heads, blocks, highest frequencies,
    sizes of images, patches. A ValueError names the first array that is missing, left over or does not fit; if the
    arrays are those of another model, it names this model.
    """
    if both := sorted(params.keys() & state.keys()):
        raise ValueError(f"{both[0]} is both a parameter and a state")
    return _converted(preset, _family(preset), "haiku", {**params, **state})


def from_huggingface(
    preset: Preset,
    weights: Mapping[str, Tensor],
    hf_config: Mapping[str, Any] | None = None,
    conv_kernel_transposed: bool | None = None,
    as_huggingface: bool = True,
) -> Converted:
    """Convert the weights of a class of transformers, as `read_torch` returns them, and its config.json.

    By default the model computes what that class computes with this config.json and transformers' defaults.

    `as_huggingface` False is for weights that DeepMind trained, in the hub's file. The model then computes as the
    preset says, and only sizes come from shapes and config.json. In the hub's files the convolution kernel has rows and
    columns exchanged; `conv_kernel_transposed` overrides this (None: exchanged, unless this library wrote config.json).

    Without config.json the preset gives all that shapes do not determine. ValueError where config.json contradicts the
    arrays.
    """
    # Fill in what config.json says, then the sizes, and check that both agree.
    family, names = _family(preset), class_names(hf_config or {})
    if hf_config is not None:
        preset = changed(preset, read_config(family, hf_config, as_huggingface))
    preset, converted = _converted(preset, family, "huggingface", weights)
    config = hf_config or {}
    if hf_config is not None:
        settings = check_config(preset, family, converted, hf_config, as_huggingface)
        if as_huggingface:
            check_class(preset, family, converted)
            check_shapes(family, settings, weights)
    # Exchange rows and columns of the kernel where needed.
    if conv_kernel_transposed is None:
        conv_kernel_transposed = not as_huggingface and config.get(KERNEL_KEY) is not False
    if KERNEL in converted and conv_kernel_transposed:
        converted[KERNEL] = converted[KERNEL].mT.contiguous()
    return _with_class_names(preset, names), converted


def from_krasserm(
    preset: Preset,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    as_krasserm: bool = True,
) -> Converted:
    """Convert the weights of krasserm's perceiver-io: its masked language model, image classifier and optical flow.

    `config`: the content of config.json, which gives heads and blocks; None: the preset gives them. By default the
    model computes what krasserm's model does; with `as_krasserm` False, for weights of DeepMind, what the preset says.
    """
    # Remove the prefixes of wrappers around the model from the names.
    names = {name: re.sub(r"^(backend_model|model)\.", "", name) for name in weights}
    # A query residual wraps the decoder's attention in one more module, which shows in its name: name all alike.
    residual = any(name.startswith("1.cross_attn.0.module.") for name in names.values())
    names = {name: re.sub(r"^1\.cross_attn\.0\.(?!module\.)", r"\g<0>module.", short) for name, short in names.items()}
    if len(set(names.values())) < len(names):
        raise ValueError("the same array is there with and without the name of a wrapper")
    # Fill in what config.json says, then the sizes, and check that both agree.
    family = _family(preset)
    if config is not None:
        preset = changed(preset, krasserm.read_config(family, config, as_krasserm))
    preset = changed(preset, {"config.decoder.query_residual": residual})
    arrays = {names[name]: array for name, array in weights.items()}
    preset, converted = _converted(preset, family, "krasserm", arrays)
    if config is not None:
        krasserm.check_config(preset, family, converted, config)
    return preset, converted


def to_huggingface(preset: Preset, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return weights and the content of config.json with which a class of transformers computes the same.

    A ValueError names what the class would compute differently (`huggingface_options` changes that) or what config.json
    cannot express. Classes of images expect pixels normalised with `mean` and `std` (`written_normalisation`). Warns of
    dropout that transformers lacks.
    """
    family = _family(preset)
    converted = to_theirs(family, "huggingface", weights)
    _check_shapes(preset, family, "ours", weights)
    config = written_config(preset, family, weights)
    check_shapes(family, config, converted)
    if KERNEL in weights:
        config[KERNEL_KEY] = False
    for stage in STAGES:
        if dropout := value_at(preset, f"config.{stage}.dropout"):
            warnings.warn(f"transformers trains without config.{stage}.dropout = {dropout}", stacklevel=2)
    return converted, config


def huggingface_options(preset: Preset, activation: str | None = "gelu_erf") -> Preset:
    """Return the preset with transformers' options for the hub's config.json: GELU, residual, padding, masks, unit.

    The class then computes the same, except for a text without tokens: attention to nothing is a mean there, 0 here.
    `activation` is by default that of the hub's config.json; None keeps the preset's, for a config.json with another.
    """
    activations: Values = {f"config.{stage}.activation": activation for stage in STAGES} if activation else {}
    return changed(preset, activations | OPTIONS[_family(preset)])


def _converted(preset: Preset, family: str, column: Column, arrays: Mapping[str, Any]) -> Converted:
    actual = family_of(arrays, column)
    if actual != family:
        raise ValueError(f"these are the arrays of the model {actual}, the preset is one of {family}")
    weights = to_ours(family, column, arrays)
    preset = sized(preset, family, weights)
    _check_shapes(preset, family, column, arrays)
    return preset, weights


def _family(preset: Preset) -> str:
    # One head and one layer: heads that fit the widths of the arrays need not divide those of the preset.
    simple = {f"config.{stage}.num_heads": 1 for stage in STAGES} | {"config.processor.num_layers": 1}
    names = changed(preset, simple).build("meta").state_dict()
    try:
        family = family_of(names, "ours")
        check_names(family, pairs(family, "ours", count_layers(family, "ours", names)), names)
    except ValueError as error:
        raise ValueError(f"a preset of which no weights were released: {error}") from None
    return family


def _check_shapes(preset: Preset, family: str, column: Column, arrays: Mapping[str, Any]) -> None:
    model = preset.build("meta").state_dict()
    for pair in pairs(family, column, count_layers(family, column, arrays)):
        expected = list(pair.rule.to_theirs(model[pair.ours]).shape)
        if pair.theirs in arrays and (seen := list(arrays[pair.theirs].shape)) != expected:
            raise ValueError(
                f"{pair.theirs} has shape {seen}; with this preset and the other arrays it should be {expected}"
            )


def _with_class_names(preset: Preset, names: tuple[str, ...]) -> Preset:
    if not names or "label" not in preset.schema.outputs:
        return preset
    ends = [end for end in (INPUT, OUTPUT) if "label" in value_at(preset, end.rstrip("."))]
    return changed(preset, {f"{end}label.classes": names for end in ends})
